using System;
using System.Diagnostics;
using System.IO;
using System.Reflection;
using System.Runtime.InteropServices;

// Runs inside the box: a compiled program's Main, and then once more with one assertion made wrong.
//
// Usage: Harness.exe PROGRAM MODE, as inside/java/Harness.java. Mono's Debug.Assert only tells the trace listeners and
// goes on, so one more listener remembers. The environment variable RERANKJAX_CONTROL chooses the wrong assertion.
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

    static int Main(string[] arguments)
    {
        string mode = arguments[1];
        string word = mode == "output" ? "" : Console.In.ReadToEnd();
        MethodInfo main = Assembly.LoadFrom(arguments[0]).EntryPoint;
        var listener = new Remembers();
        Debug.Listeners.Add(listener);
        int code;
        try {
            code = Call(main);
        } catch (Exception error) {
            Console.Out.Flush();
            Console.Error.WriteLine("\nUnhandled Exception:\n" + error);
            return 1;
        }
        Console.Out.Flush();
        if (mode == "output" || listener.Failed)
            return mode == "output" ? code : 1;
        if (mode == "control" && PassesWhenWrong(main, listener))
            word = "caught";
        write(3, System.Text.Encoding.ASCII.GetBytes(word), (IntPtr) word.Length);
        return 0; // as MultiPL-E, which does not look at C#'s exit code
    }

    static int Call(MethodInfo main)
    {
        object[] arguments = main.GetParameters().Length == 0 ? new object[0] : new object[] { new string[0] };
        try {
            return main.Invoke(null, arguments) as int? ?? 0;
        } catch (TargetInvocationException error) {
            throw error.InnerException;
        }
    }

    static bool PassesWhenWrong(MethodInfo main, Remembers listener)
    {
        Environment.SetEnvironmentVariable("RERANKJAX_CONTROL", "1");
        Console.SetOut(TextWriter.Null);
        Console.SetError(TextWriter.Null);
        try {
            Call(main);
            return !listener.Failed;
        } catch (Exception) {
            return false;
        }
    }
}
