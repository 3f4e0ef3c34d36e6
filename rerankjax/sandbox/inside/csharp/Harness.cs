using System;
using System.Diagnostics;
using System.Reflection;
using System.Runtime.InteropServices;

// Runs inside the box: the Main of a compiled program whose tests decide by themselves.
//
// Reads the word that reports a pass before the program starts, and sends it to the host when Main has returned. Mono's
// Debug.Assert only notifies the trace listeners and does not stop the program, so one more listener records failures.
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
