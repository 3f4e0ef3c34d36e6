using System;
using System.IO;
using System.Text;

// Runs inside a box of its own: a warm mcs. It runs nothing of what it compiles.
//
// A request is 4 bytes of length and the source; the reply is 4 bytes of length and JSON.
static class Compiler
{
    static void Main()
    {
        Stream requests = Console.OpenStandardInput(), replies = Console.OpenStandardOutput();
        Console.SetOut(TextWriter.Null);
        while (true) {
            byte[] length = Read(requests, 4);
            Array.Reverse(length);
            byte[] source = Read(requests, BitConverter.ToInt32(length, 0));
            byte[] reply = Encoding.UTF8.GetBytes(Compile(source));
            length = BitConverter.GetBytes(reply.Length);
            Array.Reverse(length);
            replies.Write(length, 0, 4);
            replies.Write(reply, 0, reply.Length);
            replies.Flush();
        }
    }

    static byte[] Read(Stream stream, int count)
    {
        var bytes = new byte[count];
        for (int got, at = 0; at < count; at += got) {
            got = stream.Read(bytes, at, count - at);
            if (got == 0)
                Environment.Exit(0);
        }
        return bytes;
    }

    static string Compile(byte[] source)
    {
        var log = new StringWriter();
        bool succeeded;
        File.WriteAllBytes("program.cs", source);
        try {
            string tell = "-r:" + Path.Combine(AppDomain.CurrentDomain.BaseDirectory, "Tell.dll");
            var options = new[] { "/d:DEBUG", "-r:System.Numerics.dll", tell, "-nologo", "-out:program.exe", "program.cs" };
            succeeded = Mono.CSharp.CompilerCallableEntryPoint.InvokeCompiler(options, log);
        } catch (Exception error) {
            log.Write("mcs: " + error);
            succeeded = false;
        }
        string program = succeeded ? Convert.ToBase64String(File.ReadAllBytes("program.exe")) : "";
        string text = Convert.ToBase64String(Encoding.UTF8.GetBytes(log.ToString()));
        foreach (string file in Directory.GetFiles("."))
            File.Delete(file);
        return "{\"succeeded\":" + (succeeded ? "true" : "false") + ",\"log64\":\"" + text + "\",\"program\":\"" + program + "\"}";
    }
}
