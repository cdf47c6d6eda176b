/* crc32c of a payload for the limit program, as fast as it gets on one core.
 *
 * Three lanes at once, because one lane waits three cycles for each result of the instruction. The
 * lanes are joined by tables that say what LANE_BYTES zeroes do to a checksum, which is linear.
 */

#include <err.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__
#include <nmmintrin.h>
enum { LANE_BYTES = 1024 };
static uint32_t over_zeroes[4][256];

__attribute__((target("sse4.2"))) static uint64_t crc_lane(uint64_t crc, const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return _mm_crc32_u64(crc, word);
}

static uint32_t pass_zeroes(uint32_t crc)
{
    return over_zeroes[0][crc & 255] ^ over_zeroes[1][crc >> 8 & 255] ^
           over_zeroes[2][crc >> 16 & 255] ^ over_zeroes[3][crc >> 24];
}

__attribute__((target("sse4.2"))) static uint32_t crc32c(const unsigned char *at, size_t count)
{
    uint64_t crc = 0xffffffff;
    for (; count >= 3 * LANE_BYTES; at += 3 * LANE_BYTES, count -= 3 * LANE_BYTES) {
        uint64_t second = 0, third = 0;
        for (int i = 0; i < LANE_BYTES; i += 8) {
            crc = crc_lane(crc, at + i);
            second = crc_lane(second, at + LANE_BYTES + i);
            third = crc_lane(third, at + 2 * LANE_BYTES + i);
        }
        crc = pass_zeroes(pass_zeroes((uint32_t)crc) ^ (uint32_t)second) ^ (uint32_t)third;
    }
    for (; count >= 8; at += 8, count -= 8)
        crc = crc_lane(crc, at);
    for (; count; at++, count--)
        crc = _mm_crc32_u8((uint32_t)crc, *at);
    return ~(uint32_t)crc;
}

__attribute__((target("sse4.2"))) static void prepare_crc(void)
{
    if (!__builtin_cpu_supports("sse4.2"))
        errx(1, "--crc: this processor has no crc32c instruction");
    uint32_t bit_over_zeroes[32];
    for (int bit = 0; bit < 32; bit++) {
        uint64_t crc = 1u << bit;
        for (int i = 0; i < LANE_BYTES; i += 8)
            crc = _mm_crc32_u64(crc, 0);
        bit_over_zeroes[bit] = (uint32_t)crc;
    }
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++)
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1)
                    over_zeroes[byte][value] ^= bit_over_zeroes[8 * byte + bit];
}
#else
static uint32_t crc32c(const unsigned char *at, size_t count)
{
    (void)at, (void)count;
    return 0;
}

static void prepare_crc(void)
{
    errx(1, "--crc is only made for x86-64");
}
#endif
