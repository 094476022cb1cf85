// Tensor cores and asynchronous copies as sm_80 and later have them (PTX ISA, sections on mma.sync, ldmatrix and cp.async).
#pragma once
#include "kernel.cuh"

#ifndef WARDROBE_HOST
DEVICE u32 shared_addr(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// Begins a copy of 16 bytes to shared memory; both addresses are multiples of 16. With `bytes` 0 zeros are written instead and
// `from` is not read.
DEVICE void cp_async16(void* to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_addr(to)), "l"(from), "r"(bytes) : "memory");
}
// The same of 4 bytes, both addresses multiples of 4.
DEVICE void cp_async4(void* to, const void* from, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_addr(to)), "l"(from), "r"(bytes) : "memory");
}
// The copies begun since the last commit become a group.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last N groups of this thread have arrived.
template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8 by 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and gets elements 2 (l % 4)
// and the next of row l / 4 of each.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_addr(row))
                 : "memory");
}
DEVICE void ldmatrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_addr(row))
                 : "memory");
}
// The same, each matrix transposed.
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_addr(row))
                 : "memory");
}
DEVICE void ldmatrix_x2_transposed(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_addr(row))
                 : "memory");
}

// d[16][8] += a[16][16] b[8][16]ᵀ by a warp. Lane l, with g = l / 4 and c = 2 (l % 4), holds of a the pairs at (g, c), (g + 8, c),
// (g, c + 8), (g + 8, c + 8); of b those of row g at c and c + 8; of d (g, c), (g, c + 1), (g + 8, c), (g + 8, c + 1).
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) {
    simt::multiply_add<simt::bf16_bits_to_f32>(d, a, b);
}
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], f16) {
    simt::multiply_add<simt::f16_bits_to_f32>(d, a, b);
}
#endif

// Two adjacent 16-bit elements in a register, the first in the lower half. The GPU converts two in one instruction, faster than one.
#ifndef WARDROBE_HOST
DEVICE u32 pack_pair(float first, float second, bf16) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
DEVICE u32 pack_pair(float first, float second, f16) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
#else
template <class T>
u32 pack_pair(float first, float second, T) {
    return u32(from_f32<T>(first).bits) | u32(from_f32<T>(second).bits) << 16;
}
#endif
template <class T>
DEVICE u32 pack2(float first, float second) {
    return pack_pair(first, second, T{});
}
