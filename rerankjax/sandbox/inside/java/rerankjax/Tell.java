package rerankjax;

import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/** Runs inside the box: tells the host a value that a test is about, and waits until it has been found right. */
public final class Tell {
    private static FileOutputStream tell;
    private static FileInputStream hear;

    public static void tell(Object value) {
        StringBuilder text = new StringBuilder();
        write(text, value);
        try {
            if (tell == null) {
                tell = new FileOutputStream("/proc/self/fd/200", true);
                hear = new FileInputStream("/proc/self/fd/201");
            }
            tell.write(text.append('\0').toString().getBytes(StandardCharsets.US_ASCII));
            if (hear.read() >= 0) {
                return;
            }
        } catch (IOException error) {
            throw new AssertionError(error);
        }
        throw new AssertionError("a test expects another value");
    }

    private static void write(StringBuilder to, Object value) {
        if (value == null) {
            to.append('n');
        } else if (value instanceof Boolean b) {
            to.append(b ? "b1" : "b0");
        } else if (value instanceof Long) {
            to.append('l').append(value);
        } else if (value instanceof Integer || value instanceof Short || value instanceof Byte) {
            to.append('i').append(value);
        } else if (value instanceof Character c) {
            to.append('c').append((int) c);
        } else if (value instanceof Float f) {
            to.append('f').append((double) f);
        } else if (value instanceof Double) {
            to.append('d').append(value);
        } else if (value instanceof String s) {
            to.append('s');
            for (byte b : s.getBytes(StandardCharsets.UTF_8)) {
                to.append(Character.forDigit(b >> 4 & 15, 16)).append(Character.forDigit(b & 15, 16));
            }
        } else if (value instanceof Optional<?> o) {
            items(to.append('O'), '(', o.stream().toList(), ')');
        } else if (value instanceof List<?> list) {
            items(to, '[', list, ']');
        } else if (value instanceof Map<?, ?> map) {
            char before = '{';
            for (var entry : map.entrySet()) {
                to.append(before);
                write(to, entry.getKey());
                to.append(':');
                write(to, entry.getValue());
                before = ',';
            }
            to.append(before == '{' ? "{}" : "}");
        } else if (value.getClass().getName().startsWith("org.javatuples.") && value instanceof Iterable<?> tuple) {
            items(to, '(', tuple, ')');
        } else if (value instanceof Set<?> set) {
            items(to, '<', set, '>');
        } else {
            to.append('?');
        }
    }

    private static void items(StringBuilder to, char open, Iterable<?> items, char close) {
        to.append(open);
        boolean first = true;
        for (Object item : items) {
            if (!first) {
                to.append(',');
            }
            first = false;
            write(to, item);
        }
        to.append(close);
    }
}
