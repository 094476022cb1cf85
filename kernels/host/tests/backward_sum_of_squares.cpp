#include "../../backward/sum_of_squares.cu"

#include "check.hpp"

void run(size_t n, int offset, unsigned seed) {
    Random random(n);
    auto x = random_floats<float>(random, n + offset, 3.0f);
    const unsigned num_parts = n > 16384 ? unsigned((n + 16383) / 16384) : 1;
    Buffer<double> parts(num_parts), total(1);
    SumOfSquaresArgs args{x.get() + offset, parts.get(), total.get(), n, int(num_parts)};
    sum_of_squares_parts(Dim3{num_parts}, Dim3{256}, 0, &args, seed);
    sum_of_squares_total(Dim3{1}, Dim3{256}, 0, &args, seed);
    double want = 0.0;
    for (size_t i = 0; i < n; i++) want += double(args.x[i]) * args.x[i];
    check("sum_of_squares", n, total[0], want, 1e-13 * want);
}

// More parts than the second kernel has threads.
void total_of_many(unsigned seed) {
    const int num_parts = 600;
    Buffer<double> parts(num_parts), total(1);
    double want = 0.0;
    for (int i = 0; i < num_parts; i++) want += parts[i] = 1.0 + i;
    SumOfSquaresArgs args{nullptr, parts.get(), total.get(), 0, num_parts};
    sum_of_squares_total(Dim3{1}, Dim3{256}, 0, &args, seed);
    check("sum of parts", 0, total[0], want, 0.0);
}

int main() {
    for_orders([](unsigned seed) {
        for (size_t n : {0, 1, 3, 1000, 16384, 16385, 50001}) {
            run(n, 0, seed);
            run(n, 1, seed);
        }
        total_of_many(seed);
    });
}
