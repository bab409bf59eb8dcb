static unsigned table[64];
unsigned mix(unsigned x, int n)
{
    for (int i = 0; i < n; i++) {
        x = x * 1664525u + table[(x >> 3) % 64];
        table[i % 64] ^= x >> (i & 15);
    }
    return x;
}
