# Bytes that compress a little: `perl data.pl COUNT`, the same for the same count.
my ($count, $x, $out) = ($ARGV[0], 12345, '');
while (length($out) < $count) {
    $x = ($x * 1103515245 + 12345) & 0x7fffffff;
    $out .= ($x >> 16) % 3 ? "word" . ($x >> 20) % 97 . ' ' : pack('N', $x);
}
print substr($out, 0, $count);
