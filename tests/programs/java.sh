# A Java virtual machine: the compiler, then threads with collections, direct buffers, compression and class loading.
# needs: java javac
mkdir classes
javac -J-Xmx300m -d classes "$HERE/Work.java" 2>>served
java -Xmx400m -cp classes Work 2>>served
java -Xmx400m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp classes Work 2>>served
