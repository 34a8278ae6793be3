// The native kernels of another processor as a process: requests on stdin, answers on stdout, for the tests to speak to
// through an emulator. A request is a header of six numbers and then its arrays.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
bool gsn_agrees();
int64_t gsn_kept(int64_t F, int64_t D);
bool gsn_pack(const float*, int64_t, int64_t, void*, float*, float*, float*, int);
void* gsn_above(const float*, const void*, const float*, const float*, const float*, const float*, const float*,
                const float*, const float*, int64_t, int64_t, int64_t, int, int64_t*);
bool gsn_take(void*, int64_t*, int32_t*, float*, int);
bool gsn_dots(const int64_t*, const int32_t*, int64_t, int64_t, const float*, const float*, int64_t, float*, int);
bool gsn_sums(const int64_t*, const int32_t*, const float*, int64_t, int64_t, const float*, int64_t, float*, int);
bool gsn_transposed(const int64_t*, const int32_t*, int64_t, int64_t, int64_t*, int32_t*, int64_t*, int);
}

template <class T>
std::vector<T> read(int64_t count) {
    std::vector<T> out(count);
    if (count && fread(out.data(), sizeof(T), count, stdin) != size_t(count)) exit(1);
    return out;
}

template <class T>
void write(const std::vector<T>& values) {
    fwrite(values.data(), sizeof(T), values.size(), stdout);
}

void demand(bool done) {
    if (!done) exit(2);
}

int main() {
    demand(gsn_agrees());
    int64_t head[6];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        const auto [what, rows, columns, D, threads, count] = head;
        if (what == 0) {  // above; count: whether tokens have floors of their own
            const auto W = read<float>(columns * D), b = read<float>(columns), floor = read<float>(columns);
            const auto x = read<float>(rows * D), token_floor = read<float>(count ? rows : 0);
            std::vector<char> strips(gsn_kept(columns, D));
            std::vector<float> norm(columns), lost(columns), scale(columns);
            demand(gsn_pack(W.data(), columns, D, strips.data(), norm.data(), lost.data(), scale.data(), threads));
            std::vector<int64_t> found(1);
            void* answer = gsn_above(W.data(), strips.data(), norm.data(), lost.data(), scale.data(), x.data(),
                                     b.data(), floor.data(), count ? token_floor.data() : nullptr, rows, columns, D,
                                     threads, found.data());
            demand(answer);
            std::vector<int64_t> offsets(rows + 1);
            std::vector<int32_t> ids(found[0]);
            std::vector<float> values(found[0]);
            demand(gsn_take(answer, offsets.data(), ids.data(), values.data(), threads));
            write(found), write(offsets), write(ids), write(values);
        } else {  // of a pattern with `count` entries
            const auto offsets = read<int64_t>(rows + 1);
            const auto ids = read<int32_t>(count);
            if (what == 1) {
                const auto left = read<float>(rows * D), right = read<float>(columns * D);
                std::vector<float> out(count);
                demand(gsn_dots(offsets.data(), ids.data(), rows, columns, left.data(), right.data(), D, out.data(),
                                threads));
                write(out);
            } else if (what == 2) {
                const auto values = read<float>(count), table = read<float>(columns * D);
                std::vector<float> out(rows * D);
                demand(gsn_sums(offsets.data(), ids.data(), values.data(), rows, columns, table.data(), D, out.data(),
                                threads));
                write(out);
            } else {
                std::vector<int64_t> starts(columns + 1), from(count);
                std::vector<int32_t> turned(count);
                demand(gsn_transposed(offsets.data(), ids.data(), rows, columns, starts.data(), turned.data(),
                                      from.data(), threads));
                write(starts), write(turned), write(from);
            }
        }
        fflush(stdout);
    }
}
