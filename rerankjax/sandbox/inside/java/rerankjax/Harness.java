package rerankjax;

import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.OutputStream;
import java.lang.reflect.InvocationTargetException;

/**
 * Runs inside the box: the main of a compiled program whose tests decide by themselves.
 *
 * <p>The word that tells the host of a pass is taken before the program starts and said when main has returned.
 */
final class Harness {
    public static void main(String[] arguments) throws Throwable {
        byte[] word = new byte[64];
        int length;
        try (var hear = new FileInputStream("/proc/self/fd/201")) {
            length = hear.read(word);
        }
        try {
            var main = Class.forName(arguments[0]).getDeclaredMethod("main", String[].class);
            main.setAccessible(true);
            main.invoke(null, (Object) new String[0]);
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
        System.out.flush();
        try (OutputStream tell = new FileOutputStream("/proc/self/fd/200", true)) {
            tell.write(word, 0, length);
        }
    }
}
