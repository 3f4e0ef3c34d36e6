using System;
using System.Collections;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

// Runs inside the box: sends the host a value that a test checks, and waits until the host finds it correct.
public static class RerankjaxTell
{
    [DllImport("libc")]
    static extern IntPtr write(int file, byte[] from, IntPtr count);
    [DllImport("libc")]
    static extern IntPtr read(int file, byte[] into, IntPtr count);

    public static void Tell(object value)
    {
        var text = new StringBuilder();
        Write(text, value);
        byte[] frame = Encoding.ASCII.GetBytes(text.Append('\0').ToString());
        for (int sent = 0; sent < frame.Length;) {
            var rest = new byte[frame.Length - sent];
            Array.Copy(frame, sent, rest, 0, rest.Length);
            int count = (int) write(200, rest, (IntPtr) rest.Length);
            if (count <= 0)
                break;
            sent += count;
        }
        if ((int) read(201, new byte[1], (IntPtr) 1) == 1)
            return;
        Console.Out.Flush();
        Console.Error.WriteLine("DefaultTraceListener.Fail: a test expects another value");
        Environment.Exit(1);
    }

    // For the receiver of Equals: null throws, except if its type is nullable.
    public static void TellReceiver<T>(T value)
    {
        if (value == null && Nullable.GetUnderlyingType(typeof(T)) == null)
            throw new NullReferenceException();
        Tell(value);
    }

    static void Write(StringBuilder to, object value)
    {
        if (value == null)
            to.Append('n');
        else if (value is bool)
            to.Append((bool) value ? "b1" : "b0");
        else if (value is char)
            to.Append('c').Append((int) (char) value);
        else if (value is float || value is double)
            to.Append(value is float ? 'f' : 'd').Append(Convert.ToDouble(value).ToString("R", CultureInfo.InvariantCulture));
        else if (value is decimal)
            to.Append('d').Append(((decimal) value).ToString(CultureInfo.InvariantCulture));
        else if (value is long)
            to.Append('l').Append(((long) value).ToString(CultureInfo.InvariantCulture));
        else if (value is int || value is short || value is sbyte || value is byte || value is ushort || value is uint
            || value is ulong)
            to.Append('i').Append(Convert.ToString(value, CultureInfo.InvariantCulture));
        else if (value is string) {
            to.Append('s');
            foreach (byte b in Encoding.UTF8.GetBytes((string) value))
                to.Append(b.ToString("x2"));
        } else if (value is IDictionary) {
            char before = '{';
            foreach (DictionaryEntry entry in (IDictionary) value) {
                to.Append(before);
                Write(to, entry.Key);
                to.Append(':');
                Write(to, entry.Value);
                before = ',';
            }
            to.Append(before == '{' ? "{}" : "}");
        } else if (value.GetType().FullName.StartsWith("System.Tuple`")) {
            char before = '(';
            for (int at = 1; at <= value.GetType().GetGenericArguments().Length; at++) {
                to.Append(before);
                if (Nullable.GetUnderlyingType(value.GetType().GetGenericArguments()[at - 1]) != null)
                    to.Append("N,"); // a nullable item has another type than its value
                Write(to, value.GetType().GetProperty("Item" + at).GetValue(value, null));
                before = ',';
            }
            to.Append(')');
        } else if (value is IEnumerable) {
            to.Append('[');
            bool first = true;
            foreach (object item in (IEnumerable) value) {
                if (!first)
                    to.Append(',');
                first = false;
                Write(to, item);
            }
            to.Append(']');
        } else
            to.Append('?');
    }
}
