package rerankjax;

import java.util.*;
import java.lang.reflect.*;
import org.javatuples.*;
import java.security.*;
import java.math.*;
import java.io.*;
import java.util.stream.*;

/** What a class archive is made from: it uses what MultiPL-E's programs use. */
class Example {
    public static void main(String[] args) {
        ArrayList<Long> list = new ArrayList<Long>(Arrays.asList((long) 3l, (long) 1l));
        Collections.sort(list);
        HashMap<String, Long> map = new HashMap<String, Long>(Map.of("a", 1l));
        map.merge("b", 2l, Long::sum);
        Set<Long> set = new TreeSet<>(new HashSet<>(list));
        Deque<Long> deque = new ArrayDeque<>(new LinkedList<>(list));
        Optional<Long> best = list.stream().filter(x -> x > 0).map(x -> x * 2).max(Comparator.naturalOrder());
        List<String> words = Arrays.stream("a b".split(" ")).sorted().collect(Collectors.toList());
        String text = String.join(" ", words) + best.get() + new StringBuilder("x").reverse() + "%d".formatted(1);
        assert list.equals(new ArrayList<Long>(Arrays.asList(1l, 3l)));
        assert Pair.with(1, "a").equals(Pair.with(1, "a"));
        assert text.length() == IntStream.range(0, text.length()).sum() * 0 + text.length();
        try {
            Tell.tell(list);
        } catch (AssertionError error) {
            // this program runs without a host
        }
        assert set.size() == deque.size() && new BigInteger("7").intValue() == 7 && Math.sqrt(4) == 2;
    }
}
