/* Integers, floating point, strings, long jumps, variable arguments, threads: prints what has one answer. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252ull;
static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}
static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double sum(int count, ...)
{
    va_list list;
    double total = 0;
    va_start(list, count);
    while (count--)
        total += va_arg(list, double);
    va_end(list);
    return total;
}
static jmp_buf back;
static void deep(int level)
{
    volatile char room[200];
    memset((char *)room, level, sizeof room);
    if (level == 0)
        longjmp(back, 42);
    deep(level - 1);
}
/* One for each kind: a plain addition loses what an atomic one adds meanwhile, on any processor. */
static uint64_t shared, counted;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *worker(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        if (i % 2) {
            pthread_mutex_lock(&lock);
            shared += (uintptr_t)arg;
            pthread_mutex_unlock(&lock);
        } else {
            __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
        }
    }
    return NULL;
}
int main(void)
{
    enum { N = 20000, M = 60 };
    static double values[N], a[M][M], b[M][M], c[M][M];
    for (int i = 0; i < N; i++)
        values[i] = (double)(int64_t)next() / 3.0;
    qsort(values, N, sizeof values[0], by_value);
    double folded = 0;
    for (int i = 0; i < N; i++)
        folded = folded * 0.75 + values[i] * (i % 7);
    printf("%a %a %a\n", values[0], values[N - 1], folded);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < M; j++)
            a[i][j] = sqrt(i + 1.0) / (j + 1), b[i][j] = (double)(next() % 1000);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < M; j++) {
            double s = 0;
            for (int k = 0; k < M; k++)
                s += a[i][k] * b[k][j];
            c[i][j] = s;
        }
    printf("%a %a %.17g\n", c[0][0], c[M - 1][M - 1], sum(3, c[1][2], c[3][4], 0.1));
    long double l = 1;
    for (int i = 1; i < 60; i++)
        l = l * i / 1.7L;
    printf("%La %.20Lg\n", l, l);
    unsigned __int128 wide = 1;
    uint64_t mixed = 0;
    for (int i = 1; i < 2000; i++) {
        uint64_t r = next();
        wide = wide * r + i;
        mixed ^= (uint64_t)(wide >> 64) / (r | 1) + (int64_t)r % (i + 1) + __builtin_popcountll(r) + __builtin_clzll(r | 1);
        mixed = mixed << (r & 63) | mixed >> (-r & 63);
    }
    printf("%016llx %016llx\n", (unsigned long long)mixed, (unsigned long long)wide);
    int came = setjmp(back);
    if (came == 0)
        deep(500);
    printf("%d\n", came);
    char text[4096] = "";
    for (int i = 0; i < 100; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%d:%x,", i * i, i * 77);
    int tokens = 0;
    unsigned hash = 5381;
    for (char *word = strtok(text, ","); word; word = strtok(NULL, ","), tokens++)
        for (char *p = word; *p; p++)
            hash = hash * 33 ^ (unsigned char)*p;
    printf("%d %08x\n", tokens, hash);
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, worker, (void *)(i + 1));
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    printf("%llu %llu\n", (unsigned long long)shared, (unsigned long long)counted);
    return 0;
}
