using System;
using System.Diagnostics;
using System.Reflection;
using System.Runtime.InteropServices;

// Runs inside the box: the Main of a compiled program whose tests decide by themselves.
//
// The word that tells the host of a pass is taken before the program starts and said when Main has returned. Mono's
// Debug.Assert only tells the trace listeners and goes on, so one more listener remembers.
static class Harness
{
    sealed class Remembers : TraceListener
    {
        public bool Failed;
        public override void Fail(string message) { Failed = true; }
        public override void Fail(string message, string detail) { Failed = true; }
        public override void Write(string message) { }
        public override void WriteLine(string message) { }
    }

    [DllImport("libc")]
    static extern IntPtr write(int file, byte[] from, IntPtr count);
    [DllImport("libc")]
    static extern IntPtr read(int file, byte[] into, IntPtr count);

    static int Main(string[] arguments)
    {
        var word = new byte[64];
        IntPtr length = read(201, word, (IntPtr) word.Length);
        MethodInfo main = Assembly.LoadFrom(arguments[0]).EntryPoint;
        var listener = new Remembers();
        Debug.Listeners.Add(listener);
        try {
            main.Invoke(null, main.GetParameters().Length == 0 ? new object[0] : new object[] { new string[0] });
        } catch (TargetInvocationException error) {
            Console.Out.Flush();
            Console.Error.WriteLine("\nUnhandled Exception:\n" + error.InnerException);
            return 1;
        }
        Console.Out.Flush();
        if (listener.Failed)
            return 1;
        write(200, word, length);
        return 0; // as MultiPL-E, which does not look at C#'s exit code
    }
}
