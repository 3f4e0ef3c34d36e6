package rerankjax;

import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.StringWriter;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import javax.tools.FileObject;
import javax.tools.ForwardingJavaFileManager;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileManager;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;

/**
 * Runs inside a box of its own: a warm javac. It runs nothing of what it compiles (no annotation processors).
 *
 * <p>A request is 4 bytes of length, then "j" (a public class must be called as MultiPL-E's temporary file, so none may
 * be) or "o" (it may be called anything), then the source. The reply is 4 bytes of length and JSON.
 */
final class Compiler {
    private static final class Source extends SimpleJavaFileObject {
        private final String text;
        private final boolean anyName;

        Source(String text, boolean anyName) {
            super(URI.create("string:///program.java"), Kind.SOURCE);
            this.text = text;
            this.anyName = anyName;
        }

        @Override
        public CharSequence getCharContent(boolean ignoreEncodingErrors) {
            return text;
        }

        @Override
        public boolean isNameCompatible(String name, Kind kind) {
            return anyName || super.isNameCompatible(name, kind);
        }
    }

    private static final class Output extends SimpleJavaFileObject {
        final ByteArrayOutputStream bytes = new ByteArrayOutputStream();

        Output(String name) {
            super(URI.create("bytes:///" + name.replace('.', '/') + ".class"), Kind.CLASS);
        }

        @Override
        public OutputStream openOutputStream() {
            return bytes;
        }
    }

    private static final class InMemory extends ForwardingJavaFileManager<JavaFileManager> {
        final Map<String, Output> outputs = new LinkedHashMap<>();

        InMemory(JavaFileManager files) {
            super(files);
        }

        @Override
        public JavaFileObject getJavaFileForOutput(Location at, String name, JavaFileObject.Kind kind, FileObject from) {
            Output output = new Output(name);
            outputs.put(name, output);
            return output;
        }

        @Override
        public void close() {} // what it has read of the class path serves the next compilation
    }

    public static void main(String[] arguments) throws IOException {
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        StandardJavaFileManager files = compiler.getStandardFileManager(null, null, StandardCharsets.UTF_8);
        DataInputStream requests = new DataInputStream(System.in);
        DataOutputStream replies = new DataOutputStream(System.out);
        while (true) {
            byte[] request = new byte[requests.readInt()];
            requests.readFully(request);
            String source = new String(request, 1, request.length - 1, StandardCharsets.UTF_8);
            byte[] reply = compile(compiler, files, source, request[0] == 'o').getBytes(StandardCharsets.UTF_8);
            replies.writeInt(reply.length);
            replies.write(reply);
            replies.flush();
        }
    }

    private static String compile(JavaCompiler compiler, JavaFileManager files, String source, boolean anyName) {
        StringWriter log = new StringWriter();
        InMemory outputs = new InMemory(files);
        boolean succeeded;
        try {
            List<String> options = List.of("-proc:none", "-nowarn", "-Xmaxerrs", "5", "-cp", System.getProperty("program.classpath"));
            succeeded = compiler.getTask(log, outputs, null, options, null, List.of(new Source(source, anyName))).call();
        } catch (Throwable error) { // a deeply nested program overflows javac's stack
            log.write("javac: " + error);
            succeeded = false;
        }
        List<String> classes = new ArrayList<>();
        outputs.outputs.forEach((name, output) ->
            classes.add(quote(name) + ":" + quote(Base64.getEncoder().encodeToString(output.bytes.toByteArray()))));
        return "{\"succeeded\":" + succeeded + ",\"log\":" + quote(log.toString()) + ",\"classes\":{" + String.join(",", classes) + "}}";
    }

    private static String quote(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            boolean plain = letter >= ' ' && letter != '"' && letter != '\\' && letter < 127;
            quoted.append(plain ? String.valueOf(letter) : String.format("\\u%04x", (int) letter));
        }
        return quoted.append('"').toString();
    }
}
