# Numbers of any size, text, sorting, closures: prints what has one answer.
use strict;
use warnings;
use Math::BigInt;
use Math::BigFloat;
use Digest::SHA qw(sha256_hex);
use Digest::MD5 qw(md5_hex);
use List::Util qw(sum reduce);
use Storable qw(freeze thaw);
use Time::Local;

print Math::BigInt->new(2)->bpow(521)->bsub(1), "\n";
print Math::BigInt->new(300)->bfac(), "\n";
print Math::BigFloat->new(2)->bsqrt(120), "\n", Math::BigFloat->bpi(120), "\n";
my ($x, @values) = (1);
for (1 .. 30000) { $x = ($x * 16807) % 2147483647; push @values, $x; }
my @sorted = sort { $a <=> $b } @values;
my @text = sort map { sprintf "%x", $_ } @values;
print sha256_hex("@sorted"), ' ', md5_hex("@text"), ' ', sum(@values), "\n";
my %count;
$count{ $_ % 1009 }++ for @values;
print join(',', map { "$_=$count{$_}" } (sort { $count{$b} <=> $count{$a} || $a <=> $b } keys %count)[0 .. 9]), "\n";
my $text = join ' ', map { ('alpha', 'beta', 'gamma', 'delta')[ $_ % 4 ] . $_ % 100 } @values[ 0 .. 9999 ];
my $matches = () = $text =~ /\b(?:alpha|gamma)(\d)\1\b/g;
(my $changed = $text) =~ s/(\w+?)(\d+)/uc($1) . ($2 * 3)/ge;
print "$matches ", sha256_hex($changed), "\n";
my $fib;
$fib = sub { my $n = shift; $n < 2 ? $n : $fib->($n - 1) + $fib->($n - 2) };
print $fib->(20), ' ', (reduce { $a * 3 + $b } map { $_ % 7 } @values[ 0 .. 20 ]), "\n";
print sha256_hex(join '|', @{ thaw(freeze([ sort { $a <=> $b } @values ])) }), "\n";
printf "%.15g %.15g %.15g %a\n", sin(1e5), exp(3.3) ** 2.2, atan2(1, 3), 1 / 3;
print timegm(1, 2, 3, 4, 5, 2021), ' ', scalar(gmtime(1234567890)), "\n";
print unpack('H*', pack('w/a* n N v d> f<', 'text', 1, 2, 3, 1.5, -2.25)), "\n";
