import java.io.FileOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Path;

/**
 * Runs inside the box: a compiled program's main, and then once more with one assertion made wrong.
 *
 * <p>Usage: Harness DIRECTORY CLASS MODE. Standard input holds the word that tells the host of a pass: it is gone before
 * the program starts. Mode "output" leaves standard input to the program, for its output decides. Mode "control" runs
 * main again, in a class loader of its own, where the system property rerankjax.control chooses the wrong assertion.
 */
final class Harness {
    public static void main(String[] arguments) throws Throwable {
        String mode = arguments[2];
        byte[] word = mode.equals("output") ? new byte[0] : System.in.readAllBytes();
        URL[] classes = {Path.of(arguments[0]).toUri().toURL()};
        call(classes, arguments[1]);
        if (mode.equals("output")) {
            return;
        }
        if (mode.equals("control") && passesWhenWrong(classes, arguments[1])) {
            word = "caught".getBytes();
        }
        System.out.flush();
        try (OutputStream done = new FileOutputStream("/proc/self/fd/3", true)) {
            done.write(word);
        }
    }

    private static void call(URL[] classes, String name) throws Throwable {
        ClassLoader loader = new URLClassLoader(classes);
        Thread.currentThread().setContextClassLoader(loader);
        try {
            var main = loader.loadClass(name).getDeclaredMethod("main", String[].class);
            main.setAccessible(true);
            main.invoke(null, (Object) new String[0]);
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
    }

    private static boolean passesWhenWrong(URL[] classes, String name) {
        PrintStream out = System.out;
        PrintStream err = System.err;
        System.setProperty("rerankjax.control", "true");
        System.setOut(new PrintStream(OutputStream.nullOutputStream()));
        System.setErr(System.out);
        System.setIn(InputStream.nullInputStream());
        try {
            call(classes, name);
            return true;
        } catch (Throwable error) {
            return false;
        } finally {
            System.setOut(out);
            System.setErr(err);
        }
    }
}
