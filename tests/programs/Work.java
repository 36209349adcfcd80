import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.*;
import java.util.stream.*;
import java.util.zip.*;

/** Work of many kinds in threads; everything it prints is the same in every run. */
public class Work {
    static long collections(int seed) {
        Random random = new Random(seed);
        Map<String, List<Integer>> map = new TreeMap<>();
        for (int i = 0; i < 60_000; i++)
            map.computeIfAbsent("key" + random.nextInt(9_000), k -> new ArrayList<>()).add(i);
        map.keySet().removeIf(k -> k.hashCode() % 3 == 0);
        return map.entrySet().stream().mapToLong(e -> e.getKey().hashCode() * 31L + e.getValue().hashCode()).sum();
    }

    static long outside(int seed) throws Exception {
        Random random = new Random(seed);
        CRC32 sum = new CRC32();
        List<ByteBuffer> kept = new ArrayList<>();
        for (int i = 0; i < 600; i++) {
            ByteBuffer buffer = ByteBuffer.allocateDirect(1 + random.nextInt(60_000));
            while (buffer.remaining() >= 8) buffer.putLong(i * 0x9e3779b97f4a7c15L + buffer.position());
            buffer.flip();
            if (kept.size() > 50) sum.update(kept.remove(random.nextInt(kept.size())));
            kept.add(buffer);
        }
        byte[] data = new byte[400_000];
        for (int i = 0; i < data.length; i++) data[i] = (byte) (i * i / 7);
        Deflater deflater = new Deflater(6);
        deflater.setInput(data);
        deflater.finish();
        byte[] packed = new byte[500_000];
        int length = deflater.deflate(packed);
        deflater.end();
        Inflater inflater = new Inflater();
        inflater.setInput(packed, 0, length);
        byte[] back = new byte[data.length];
        if (inflater.inflate(back) != data.length || !Arrays.equals(back, data)) throw new Exception("compression");
        inflater.end();
        return sum.getValue() * 31 + length;
    }

    static long text(int seed) {
        Matcher matcher = Pattern.compile("(\\w)(\\d+)\\1").matcher(
            IntStream.range(seed, seed + 20_000).mapToObj(i -> "a" + i + (i % 2 == 0 ? "a" : "b")).collect(Collectors.joining(" ")));
        long found = 0;
        while (matcher.find()) found += matcher.group(2).length();
        return found;
    }

    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> results = new ArrayList<>();
        for (int i = 0; i < 24; i++) {
            int seed = i;
            results.add(pool.submit(() -> collections(seed) ^ outside(seed) ^ text(seed)));
        }
        for (Future<Long> result : results) System.out.println(result.get());
        pool.shutdown();
        long total = 0;
        for (int round = 0; round < 300; round++) {
            int n = round;
            FutureTask<Integer> task = new FutureTask<>(() -> n * n);
            Thread thread = new Thread(task);
            thread.start();
            total += task.get();
            thread.join();
        }
        System.out.println("threads " + total);
        System.out.println("parallel " + IntStream.range(0, 2_000_000).parallel().mapToObj(Integer::toString).mapToLong(String::length).sum());
    }
}
