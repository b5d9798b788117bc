// The decoder step of utils.speculative in C++: float32 arithmetic, one thread.
//
// It computes what `Target.forward`, `EagleDrafter` and `MedusaHeads` compute, without PyTorch's dispatch of some
// 2,500 small operators. PyTorch's loop is the readable twin of this file, and the tests compare the two.
//
// One rule holds everywhere: every number is summed in one order, no matter how many rows are computed together.
// So a chain, a tree or a batch gives bit for bit what one token at a time gives (a "batch-invariant" kernel):
//
// * A product sums over its inputs in ascending order, in one accumulator per output.
// * Attention sums over the slots of the cache in ascending order. A slot that a query must not see has the weight 0,
//   and adding 0 changes nothing.
// * A norm sums over a row in vectors of LANES numbers, and a row is never split.
//
// The compiler must therefore not reorder sums: this file is built without -ffast-math.
//
// Layouts:
//
// * A matrix [outputs, inputs] is stored in panels of PANEL outputs, [outputs / PANEL][inputs][PANEL], as bfloat16 or as
//   float32. One pass over a panel reads memory in order, and multiplies each weight with all rows while it is in a
//   register. The upper half of a float32 is a bfloat16, so expanding one is exact. Two bfloat16 that are LANES outputs
//   apart share a word of 32 bits, so two vectors come from one load, a shift and a mask.
// * The cache is [layers][2][rows][kv_heads][slots][head_dim]. Values are stored like that, and keys in panels of
//   SLOTS slots, [slots / SLOTS][head_dim][SLOTS]. So keys and values are panels of matrices too.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if !defined(__clang__) && __GNUC__ < 9
#error COMPILER_TOO_OLD
#endif

#if defined(__AVX512F__)
#define INSTRUCTIONS "AVX-512"
constexpr int LANES = 16, PANEL = 64, FEW_ROWS = 6, FEW_VECTORS = 4, MANY_VECTORS = 4;
#elif defined(__AVX2__) && defined(__FMA__)
#define INSTRUCTIONS "AVX2"
constexpr int LANES = 8, PANEL = 32, FEW_ROWS = 2, FEW_VECTORS = 4, MANY_VECTORS = 2;
#elif defined(__ARM_NEON)
#define INSTRUCTIONS "NEON"
constexpr int LANES = 4, PANEL = 32, FEW_ROWS = 3, FEW_VECTORS = 8, MANY_VECTORS = 4;
#else
#error NO_VECTOR_INSTRUCTIONS
#endif

namespace {

constexpr int BLOCK = 6;   // most rows of one pass over a panel: their sums fill the registers
constexpr int SLOTS = 64;  // slots of a panel of keys
constexpr float UNSEEN = -1e30f;         // score of a slot that a query must not see
constexpr int LINE = 64, AHEAD = 4096;   // bytes of a cache line, and from a weight to the one that is asked for

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct Pair {  // two bfloat16
    uint32_t bits;
};

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// VECTORS vectors of a row of a panel.
template <int VECTORS>
inline void load_weights(const float* from, Vector* weights) {
    for (int v = 0; v < VECTORS; v++) weights[v] = load(from + LANES * v);
}

template <int VECTORS>
inline void load_weights(const Pair* from, Vector* weights) {
    for (int v = 0; v < VECTORS; v += 2) {
        const Words pairs = *reinterpret_cast<const Words*>(from + LANES * v / 2);
        weights[v] = reinterpret_cast<Vector>(pairs << 16);
        weights[v + 1] = reinterpret_cast<Vector>(pairs & 0xffff0000u);
    }
}

inline float sum_of_lanes(Vector value) {
    float sums[LANES];
    store(sums, value);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    }
    return sums[0];
}

// exp of each lane, to about 1e-7 relative: exp(x) = 2^n exp(r) with |r| <= ln(2) / 2 (Cephes' polynomial). It is 0 below
// -87, and no caller needs it above 88.
inline Vector exponential(Vector x) {
    const Vector magic = Vector{} + 12582912.f;  // adding 1.5 * 2^23 rounds to a whole number
    const Vector least = Vector{} - 87.f, most = Vector{} + 88.f, zero = {};
    const auto vanishes = x < least;
    x = vanishes ? least : x;
    x = x > most ? most : x;
    const Vector n = (x * 1.44269504f + magic) - magic;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector y = Vector{} + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.f;
    y *= reinterpret_cast<Vector>((__builtin_convertvector(n, Integers) + 127) << 23);
    return vanishes ? zero : y;
}

// Sums of ROWS rows of `count` numbers, each in ascending order; several rows at a time hide the latency of an addition.
template <int ROWS>
inline void sums_of(const float* x, size_t stride, int count, float* sums) {
    float sum[ROWS] = {};
    for (int i = 0; i < count; i++) {
        for (int row = 0; row < ROWS; row++) sum[row] += x[row * stride + i];
    }
    for (int row = 0; row < ROWS; row++) sums[row] = sum[row];
}

void sums_of_rows(const float* x, int rows, size_t stride, int count, float* sums) {
    int row = 0;
    for (; row + 8 <= rows; row += 8) sums_of<8>(x + row * stride, stride, count, sums + row);
    for (; row + 4 <= rows; row += 4) sums_of<4>(x + row * stride, stride, count, sums + row);
    for (; row < rows; row++) sums_of<1>(x + row * stride, stride, count, sums + row);
}

// y[row][0 .. LANES * VECTORS) = x[row] * panel, for ROWS rows: each weight is read once for all rows. While one weight is
// used, that AHEAD bytes further on is asked for, because a step reads memory that no cache near the core holds.
template <int ROWS, int VECTORS, typename Weight>
inline void multiply(const float* x, int x_stride, int inputs, const Weight* panel, int panel_stride, float* y,
                     int y_stride, bool add) {
    constexpr int BYTES = std::is_same<Weight, float>::value ? 4 * LANES : 2 * LANES;  // of a vector's weights
    Vector sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; row++) {
        for (int v = 0; v < VECTORS; v++) sums[row][v] = Vector{};
    }
    for (int k = 0; k < inputs; k++) {
        const Weight* at = panel + static_cast<size_t>(k) * panel_stride;
        for (int byte = 0; byte < VECTORS * BYTES; byte += LINE)
            __builtin_prefetch(reinterpret_cast<const char*>(at) + AHEAD + byte);
        Vector weights[VECTORS];
        load_weights<VECTORS>(at, weights);
        for (int row = 0; row < ROWS; row++) {
            const float value = x[row * x_stride + k];
            for (int v = 0; v < VECTORS; v++) sums[row][v] += weights[v] * value;
        }
    }
    for (int row = 0; row < ROWS; row++) {
        for (int v = 0; v < VECTORS; v++) {
            float* to = y + static_cast<size_t>(row) * y_stride + LANES * v;
            store(to, add ? sums[row][v] + load(to) : sums[row][v]);
        }
    }
}

// Dispatch on the number of rows, which has to be known when the code is compiled.
template <int VECTORS, typename Weight>
inline void multiply_rows(int rows, const float* x, int x_stride, int inputs, const Weight* panel, int panel_stride,
                          float* y, int y_stride, bool add) {
    switch (rows) {
        case 1: multiply<1, VECTORS>(x, x_stride, inputs, panel, panel_stride, y, y_stride, add); break;
        case 2: multiply<2, VECTORS>(x, x_stride, inputs, panel, panel_stride, y, y_stride, add); break;
        case 3: multiply<3, VECTORS>(x, x_stride, inputs, panel, panel_stride, y, y_stride, add); break;
        case 4: multiply<4, VECTORS>(x, x_stride, inputs, panel, panel_stride, y, y_stride, add); break;
        case 5: multiply<5, VECTORS>(x, x_stride, inputs, panel, panel_stride, y, y_stride, add); break;
        default: multiply<6, VECTORS>(x, x_stride, inputs, panel, panel_stride, y, y_stride, add); break;
    }
}

// All rows by a panel of `width` outputs, in equal blocks of at most BLOCK rows.
template <int VECTORS, typename Weight>
inline void multiply_panel(int n, const float* x, int x_stride, int inputs, const Weight* panel, int panel_stride,
                           int width, float* y, int y_stride, bool add) {
    constexpr int UNIT = std::is_same<Weight, float>::value ? 2 : 1;  // halves of a number of weights
    const int blocks = (n + BLOCK - 1) / BLOCK;
    int first = 0;
    for (int block = 0; block < blocks; block++) {
        const int rows = (n - first + blocks - block - 1) / (blocks - block);
        for (int at = 0; at < width; at += LANES * VECTORS)
            multiply_rows<VECTORS>(rows, x + static_cast<size_t>(first) * x_stride, x_stride, inputs, panel + at * UNIT / 2,
                                   panel_stride, y + static_cast<size_t>(first) * y_stride + at, y_stride, add);
        first += rows;
    }
}

// All rows by the first `width` columns of a matrix of floats, which is a multiple of LANES.
inline void multiply_columns(int n, const float* x, int x_stride, int inputs, const float* panel, int panel_stride,
                             int width, float* y, int y_stride) {
    constexpr int WIDE = LANES * MANY_VECTORS;
    const int wide = width / WIDE * WIDE;
    multiply_panel<MANY_VECTORS>(n, x, x_stride, inputs, panel, panel_stride, wide, y, y_stride, false);
    multiply_panel<1>(n, x, x_stride, inputs, panel + wide, panel_stride, width - wide, y + wide, y_stride, false);
}

}  // namespace

// A matrix in panels. `weights` is Pair (bfloat16) if `halves`, else float.
struct Matrix {
    const void* weights;
    int inputs, outputs, halves;
};

// One decoder layer. `input_norm` may be null (EAGLE-1); `qk_norm` has a row per query head and per key head, or is null.
struct Layer {
    Matrix qkv, o, gate_up, down;
    const float *input_norm, *post_norm, *qk_norm;
};

// Sizes that all layers share, and the tables of rotary positions [positions][head_dim]; `sine` has the rotation's sign.
struct Shape {
    int hidden, ffn, heads, kv_heads, head_dim;
    float eps;
    const float *cosine, *sine;
};

// Nodes of one sequence, of which attention sees the `start` slots before the tree and, of the `tail` slots from there
// on, those that are set in its row of `mask` [n][tail]. Their own keys go to the last n slots of the tail.
struct Nodes {
    int n, start, tail;
    const int64_t* positions;
    const uint8_t* mask;
    float *keys, *values;  // of this sequence and layer
    int slots;
};

namespace {

template <typename Weight>
void linear_of(const float* x, int n, const Matrix& m, float* y, bool add) {
    const Weight* panel = static_cast<const Weight*>(m.weights);
    constexpr int stride = PANEL * (std::is_same<Weight, float>::value ? 2 : 1) / 2;
    for (int at = 0; at < m.outputs; at += PANEL, panel += static_cast<size_t>(stride) * m.inputs) {
        if (n <= FEW_ROWS)
            multiply_panel<FEW_VECTORS>(n, x, m.inputs, m.inputs, panel, stride, PANEL, y + at, m.outputs, add);
        else
            multiply_panel<MANY_VECTORS>(n, x, m.inputs, m.inputs, panel, stride, PANEL, y + at, m.outputs, add);
    }
}

// y [n, outputs] = x [n, inputs] * m, or += if `add`.
void linear(const float* x, int n, const Matrix& m, float* y, bool add = false) {
    if (m.halves)
        linear_of<Pair>(x, n, m, y, add);
    else
        linear_of<float>(x, n, m, y, add);
}

void rms_norm(const float* x, const float* weight, float* y, int size, float eps) {
    Vector squares = {};
    for (int i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    const float scale = 1.f / std::sqrt(sum_of_lanes(squares) / static_cast<float>(size) + eps);
    for (int i = 0; i < size; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
}

// x [n, size] = x * sigmoid(x) * other, in rows of `stride`.
void silu_times(float* x, const float* other, float* y, int size) {
    for (int i = 0; i < size; i += LANES) {
        const Vector value = load(x + i);
        store(y + i, value / (1.f + exponential(-value)) * load(other + i));
    }
}

// Rotary position of a head: the halves are rotated against each other.
void rotate(float* head, const float* cosine, const float* sine, int size) {
    const int half = size / 2;
    for (int i = 0; i < half; i += LANES) {
        const Vector low = load(head + i), high = load(head + half + i);
        store(head + i, low * load(cosine + i) + high * load(sine + i));
        store(head + half + i, high * load(cosine + half + i) + low * load(sine + half + i));
    }
}

// Memory that is kept between calls. One step runs in one thread.
struct Scratch {
    std::vector<float> normed, qkv, queries, scores, totals, mixed, attended, gate_up, active;
    float* of(std::vector<float>& buffer, size_t size) {
        if (buffer.size() < size) buffer.resize(size);
        return buffer.data();
    }
};
thread_local Scratch scratch;

// Attention of `rows` queries of one key head [rows][head_dim]; query r belongs to node r / group. Overwrites `out`.
void attend(const float* queries, int rows, int group, const Nodes& nodes, const float* keys, const float* values,
            int width, float* out) {
    const int used = nodes.start + nodes.tail, padded = (used + LANES - 1) / LANES * LANES;
    float* scores = scratch.of(scratch.scores, static_cast<size_t>(rows) * padded);
    for (int slot = 0; slot < padded; slot += SLOTS)
        multiply_columns(rows, queries, width, width, keys + static_cast<size_t>(slot) * width, SLOTS,
                         std::min(SLOTS, padded - slot), scores + slot, padded);
    const float scale = 1.f / std::sqrt(static_cast<float>(width));
    for (int row = 0; row < rows; row++) {
        float* mine = scores + static_cast<size_t>(row) * padded;
        const uint8_t* seen = nodes.mask + static_cast<size_t>(row / group) * nodes.tail;
        for (int slot = nodes.start; slot < padded; slot++) {
            if (slot >= used || !seen[slot - nodes.start]) mine[slot] = UNSEEN;
        }
        Vector most = Vector{} + UNSEEN;
        for (int slot = 0; slot < padded; slot += LANES) {
            const Vector here = load(mine + slot);
            most = here > most ? here : most;
        }
        float greatest = most[0];
        for (int lane = 1; lane < LANES; lane++) greatest = std::max(greatest, most[lane]);
        for (int slot = 0; slot < padded; slot += LANES)
            store(mine + slot, exponential((load(mine + slot) - greatest) * scale));
    }
    multiply_columns(rows, scores, padded, used, values, width, width, out, width);
    float* totals = scratch.of(scratch.totals, rows);
    sums_of_rows(scores, rows, padded, used, totals);
    for (int row = 0; row < rows; row++) {
        for (int i = 0; i < width; i += LANES) {
            float* to = out + static_cast<size_t>(row) * width + i;
            store(to, load(to) / totals[row]);
        }
    }
}

// A decoder layer over the nodes of several sequences, stacked: x [all][hidden] is the residual and the result, `inputs`
// [all][qkv.inputs] is normed already.
void decoder_layer(const Shape& s, const Layer& layer, const float* inputs, float* x, const Nodes* sequences, int count) {
    const int d = s.head_dim, group = s.heads / s.kv_heads, projected = (s.heads + 2 * s.kv_heads) * d;
    int all = 0;
    for (int i = 0; i < count; i++) all += sequences[i].n;
    float* qkv = scratch.of(scratch.qkv, static_cast<size_t>(all) * projected);
    float* attended = scratch.of(scratch.attended, static_cast<size_t>(all) * s.heads * d);
    linear(inputs, all, layer.qkv, qkv);
    int first = 0;
    for (int i = 0; i < count; i++) {
        const Nodes& nodes = sequences[i];
        const int slot = nodes.start + nodes.tail - nodes.n;
        for (int node = 0; node < nodes.n; node++) {
            float* mine = qkv + static_cast<size_t>(first + node) * projected;
            const float* cosine = s.cosine + static_cast<size_t>(nodes.positions[node]) * d;
            const float* sine = s.sine + static_cast<size_t>(nodes.positions[node]) * d;
            for (int head = 0; head < s.heads + s.kv_heads; head++) {
                float* at = mine + head * d;
                if (layer.qk_norm) rms_norm(at, layer.qk_norm + head * d, at, d, s.eps);
                rotate(at, cosine, sine, d);
            }
            for (int head = 0; head < s.kv_heads; head++) {
                const size_t of_head = static_cast<size_t>(head) * nodes.slots * d;
                const int at = slot + node;
                float* key = nodes.keys + of_head + static_cast<size_t>(at / SLOTS) * SLOTS * d + at % SLOTS;
                const float* new_key = mine + (s.heads + head) * d;
                for (int j = 0; j < d; j++) key[j * SLOTS] = new_key[j];
                std::memcpy(nodes.values + of_head + static_cast<size_t>(at) * d,
                            mine + (s.heads + s.kv_heads + head) * d, d * sizeof(float));
            }
        }
        const int rows = nodes.n * group;
        float* queries = scratch.of(scratch.queries, static_cast<size_t>(rows) * d);
        float* mixed = scratch.of(scratch.mixed, static_cast<size_t>(rows) * d);
        for (int head = 0; head < s.kv_heads; head++) {
            for (int node = 0; node < nodes.n; node++)
                std::memcpy(queries + static_cast<size_t>(node) * group * d,
                            qkv + static_cast<size_t>(first + node) * projected + head * group * d,
                            group * d * sizeof(float));
            const size_t of_head = static_cast<size_t>(head) * nodes.slots * d;
            attend(queries, rows, group, nodes, nodes.keys + of_head, nodes.values + of_head, d, mixed);
            for (int node = 0; node < nodes.n; node++)
                std::memcpy(attended + (static_cast<size_t>(first + node) * s.heads + head * group) * d,
                            mixed + static_cast<size_t>(node) * group * d, group * d * sizeof(float));
        }
        first += nodes.n;
    }
    linear(attended, all, layer.o, x, true);
    float* normed = scratch.of(scratch.normed, static_cast<size_t>(all) * s.hidden);
    float* gate_up = scratch.of(scratch.gate_up, static_cast<size_t>(all) * 2 * s.ffn);
    float* active = scratch.of(scratch.active, static_cast<size_t>(all) * s.ffn);
    for (int row = 0; row < all; row++)
        rms_norm(x + static_cast<size_t>(row) * s.hidden, layer.post_norm, normed + static_cast<size_t>(row) * s.hidden,
                 s.hidden, s.eps);
    linear(normed, all, layer.gate_up, gate_up);
    for (int row = 0; row < all; row++) {
        float* gate = gate_up + static_cast<size_t>(row) * 2 * s.ffn;
        silu_times(gate, gate + s.ffn, active + static_cast<size_t>(row) * s.ffn, s.ffn);
    }
    linear(active, all, layer.down, x, true);
}

int argmax(const float* x, int size) { return static_cast<int>(std::max_element(x, x + size) - x); }

}  // namespace

extern "C" {

const char* instructions() { return INSTRUCTIONS; }
int panel_size() { return PANEL; }
int lanes() { return LANES; }

// y [n, outputs] = x [n, inputs] * m.
void matrix_product(const Matrix* m, const float* x, int n, float* y) { linear(x, n, *m, y); }

// The target: n nodes of each of `rows` sequences. Keys and values of the nodes are written to the cache.
//
//   tokens, positions [rows][n]
//   mask [rows][n][n]     1 where a node sees a node: its ancestors and itself
//   lengths [rows]        tokens of each sequence in the cache [layers][2][rows][kv_heads][slots][head_dim]
//   aux [n_aux]           ascending; state k is the input of layer k, or the output of the last one
//   hidden [rows][n][width], features [rows][n][n_aux][width]: the results; the logits are a product of `hidden`
void target_step(const Shape* s, const Layer* layers, int n_layers, const float* embedding, const float* norm,
                 const int64_t* tokens, const int64_t* positions, const uint8_t* mask, int rows, int n, float* cache,
                 int slots, const int32_t* lengths, const int32_t* aux, int n_aux, float* hidden, float* features) {
    const int width = s->hidden, all = rows * n;
    const size_t sequence = static_cast<size_t>(s->kv_heads) * slots * s->head_dim;
    static thread_local std::vector<float> x, normed;
    static thread_local std::vector<Nodes> nodes;
    x.resize(static_cast<size_t>(all) * width);
    normed.resize(x.size());
    nodes.resize(rows);
    for (int row = 0; row < all; row++)
        std::memcpy(&x[static_cast<size_t>(row) * width], embedding + tokens[row] * width, width * sizeof(float));
    int taken = 0;
    const auto take = [&](int state) {
        if (taken == n_aux || aux[taken] != state) return;
        for (int row = 0; row < all; row++)
            std::memcpy(features + (static_cast<size_t>(row) * n_aux + taken) * width,
                        &x[static_cast<size_t>(row) * width], width * sizeof(float));
        taken++;
    };
    for (int l = 0; l < n_layers; l++) {
        take(l);
        for (int row = 0; row < rows; row++) {
            float* keys = cache + (static_cast<size_t>(2 * l) * rows + row) * sequence;
            nodes[row] = {n,    lengths[row],          n,   positions + static_cast<size_t>(row) * n,
                          mask + static_cast<size_t>(row) * n * n, keys, keys + rows * sequence, slots};
        }
        for (int row = 0; row < all; row++)
            rms_norm(&x[static_cast<size_t>(row) * width], layers[l].input_norm, &normed[static_cast<size_t>(row) * width],
                     width, s->eps);
        decoder_layer(*s, layers[l], normed.data(), x.data(), nodes.data(), rows);
    }
    take(n_layers);
    for (int row = 0; row < all; row++)
        rms_norm(&x[static_cast<size_t>(row) * width], norm, hidden + static_cast<size_t>(row) * width, width, s->eps);
}

// An EAGLE draft. EAGLE-3 has `feature_norm` and `norm`, EAGLE-1 has `fc_bias` and neither norm.
struct Eagle {
    Shape shape;
    Layer layer;
    Matrix fc, head;
    const float *fc_bias, *feature_norm, *norm, *embedding;
    const int64_t* to_target;
};

// The draft's layer over n nodes: tokens [n], feature [n][hidden] (fused), output [n][hidden].
static void eagle_layer(const Eagle& e, const int64_t* tokens, const float* feature, const Nodes& nodes, float* output) {
    const int width = e.shape.hidden, n = nodes.n;
    static thread_local std::vector<float> both, mixed;
    both.resize(static_cast<size_t>(n) * 2 * width);
    mixed.resize(static_cast<size_t>(n) * width);
    for (int row = 0; row < n; row++) {
        float* mine = &both[static_cast<size_t>(row) * 2 * width];
        const float *embedded = e.embedding + tokens[row] * width, *state = feature + static_cast<size_t>(row) * width;
        if (e.feature_norm) {
            rms_norm(embedded, e.layer.input_norm, mine, width, e.shape.eps);
            rms_norm(state, e.feature_norm, mine + width, width, e.shape.eps);
            std::memcpy(output + static_cast<size_t>(row) * width, state, width * sizeof(float));
        } else {
            std::memcpy(mine, embedded, width * sizeof(float));
            std::memcpy(mine + width, state, width * sizeof(float));
        }
    }
    if (!e.feature_norm) {  // EAGLE-1: the layer reads fc of both, and adds to it
        linear(both.data(), n, e.fc, mixed.data());
        for (int i = 0; i < n * width; i++) mixed[i] += e.fc_bias[i % width];
        std::memcpy(output, mixed.data(), mixed.size() * sizeof(float));
    }
    decoder_layer(e.shape, e.layer, e.feature_norm ? both.data() : mixed.data(), output, &nodes, 1);
}

// Logits over the draft's vocabulary of n outputs.
static void eagle_logits(const Eagle& e, const float* output, int n, float* logits) {
    const int width = e.shape.hidden;
    if (!e.norm) return linear(output, n, e.head, logits);
    static thread_local std::vector<float> normed;
    normed.resize(static_cast<size_t>(n) * width);
    for (int row = 0; row < n; row++)
        rms_norm(output + static_cast<size_t>(row) * width, e.norm, &normed[static_cast<size_t>(row) * width], width,
                 e.shape.eps);
    linear(normed.data(), n, e.head, logits);
}

// Logarithm of the sum of exp(logits).
static float log_sum(const float* logits, int size) {
    const float greatest = logits[argmax(logits, size)];
    Vector sum = {};
    for (int i = 0; i < size; i += LANES) sum += exponential(load(logits + i) - greatest);
    return greatest + std::log(sum_of_lanes(sum));
}

// Takes in n new tokens with the target's features of the tokens before them; `output` is that of the newest.
static void eagle_absorb(const Eagle& e, const int64_t* tokens, const float* features, int n, float* cache, int slots,
                         int length, float* output) {
    const int width = e.shape.hidden;
    static thread_local std::vector<float> fused, outputs;
    static thread_local std::vector<int64_t> positions;
    static thread_local std::vector<uint8_t> mask;
    fused.resize(static_cast<size_t>(n) * width);
    outputs.resize(fused.size());
    positions.resize(n);
    mask.assign(static_cast<size_t>(n) * n, 0);
    for (int row = 0; row < n; row++) {
        positions[row] = length + row;
        std::fill_n(&mask[static_cast<size_t>(row) * n], row + 1, 1);
    }
    if (e.feature_norm)
        linear(features, n, e.fc, fused.data());
    else
        std::memcpy(fused.data(), features, fused.size() * sizeof(float));
    float* values = cache + static_cast<size_t>(e.shape.kv_heads) * slots * e.shape.head_dim;
    eagle_layer(e, tokens, fused.data(), {n, length, n, positions.data(), mask.data(), cache, values, slots},
                outputs.data());
    std::memcpy(output, &outputs[static_cast<size_t>(n - 1) * width], width * sizeof(float));
}

// A chain of up to `depth` guesses after n new tokens. It ends early where the probabilities of its guesses have a product
// below `threshold`. Returns the number of guesses; `guesses` are the target's tokens.
int eagle_chain(const Eagle* e, const int64_t* tokens, const float* features, int n, float* cache, int slots, int length,
                int depth, float threshold, int64_t* guesses) {
    const int width = e->shape.hidden, vocabulary = e->head.outputs;
    static thread_local std::vector<float> output, next, logits;
    output.resize(width);
    next.resize(width);
    logits.resize(vocabulary);
    eagle_absorb(*e, tokens, features, n, cache, slots, length, output.data());
    float* values = cache + static_cast<size_t>(e->shape.kv_heads) * slots * e->shape.head_dim;
    const uint8_t itself = 1;
    float sure = 1;
    for (int step = 0;; step++) {
        eagle_logits(*e, output.data(), 1, logits.data());
        const int best = argmax(logits.data(), vocabulary);
        if (threshold > 0) {
            sure *= std::exp(logits[best] - log_sum(logits.data(), vocabulary));
            if (sure < threshold && step) return step;
        }
        guesses[step] = e->to_target[best];
        if (step + 1 == depth) return depth;
        const int64_t position = length + n + step;
        const Nodes node = {1, static_cast<int>(position), 1, &position, &itself, cache, values, slots};
        eagle_layer(*e, guesses + step, output.data(), node, next.data());
        std::swap(output, next);
    }
}

// EAGLE-2's dynamic tree: expands the `width` most probable nodes of each level, then keeps the `kept` most probable of
// all. Returns the number of nodes, the root included; `parents` and `nodes_tokens` have room for 1 + kept.
int eagle_tree(const Eagle* e, const int64_t* tokens, const float* features, int n, float* cache, int slots, int length,
               int depth, int width, int kept, int32_t* parents, int64_t* nodes_tokens) {
    struct Node {
        int parent;
        float score;
        int64_t token;
    };
    const int hidden = e->shape.hidden, vocabulary = e->head.outputs;
    std::vector<Node> nodes = {{-1, 0.f, tokens[n - 1]}};
    std::vector<int> frontier = {0}, in_cache, order(vocabulary);
    std::vector<float> outputs(hidden), logits, feature;
    const int start = length + n;
    float* values = cache + static_cast<size_t>(e->shape.kv_heads) * slots * e->shape.head_dim;
    eagle_absorb(*e, tokens, features, n, cache, slots, length, outputs.data());
    for (int level = 0;; level++) {
        const int count = static_cast<int>(frontier.size());
        logits.resize(static_cast<size_t>(count) * vocabulary);
        eagle_logits(*e, outputs.data(), count, logits.data());
        const int first = static_cast<int>(nodes.size());
        for (int i = 0; i < count; i++) {
            const float* mine = &logits[static_cast<size_t>(i) * vocabulary];
            const float total = log_sum(mine, vocabulary);
            for (int j = 0; j < vocabulary; j++) order[j] = j;
            std::partial_sort(order.begin(), order.begin() + width, order.end(), [&](int a, int b) {
                return mine[a] > mine[b] || (mine[a] == mine[b] && a < b);
            });
            for (int j = 0; j < width; j++)
                nodes.push_back({frontier[i], nodes[frontier[i]].score + mine[order[j]] - total, e->to_target[order[j]]});
        }
        if (level + 1 == depth) break;
        std::vector<int> fresh;
        for (int node = first; node < static_cast<int>(nodes.size()); node++) fresh.push_back(node);
        std::stable_sort(fresh.begin(), fresh.end(), [&](int a, int b) { return nodes[a].score > nodes[b].score; });
        fresh.resize(std::min(static_cast<int>(fresh.size()), width));
        std::sort(fresh.begin(), fresh.end());
        const int expanded = static_cast<int>(fresh.size()), tail = static_cast<int>(in_cache.size()) + expanded;
        feature.resize(static_cast<size_t>(expanded) * hidden);
        std::vector<int64_t> level_tokens(expanded), positions(expanded, start + level);
        std::vector<uint8_t> mask(static_cast<size_t>(expanded) * tail, 0);
        in_cache.insert(in_cache.end(), fresh.begin(), fresh.end());
        for (int i = 0; i < expanded; i++) {
            const int at = static_cast<int>(std::find(frontier.begin(), frontier.end(), nodes[fresh[i]].parent) -
                                            frontier.begin());
            std::memcpy(&feature[static_cast<size_t>(i) * hidden], &outputs[static_cast<size_t>(at) * hidden],
                        hidden * sizeof(float));
            level_tokens[i] = nodes[fresh[i]].token;
            for (int node = fresh[i]; node > 0; node = nodes[node].parent)
                mask[static_cast<size_t>(i) * tail + (std::find(in_cache.begin(), in_cache.end(), node) - in_cache.begin())] = 1;
        }
        outputs.resize(feature.size());
        eagle_layer(*e, level_tokens.data(), feature.data(),
                    {expanded, start, tail, positions.data(), mask.data(), cache, values, slots}, outputs.data());
        frontier = fresh;
    }
    std::vector<int> ranked;
    for (int node = 1; node < static_cast<int>(nodes.size()); node++) ranked.push_back(node);
    std::stable_sort(ranked.begin(), ranked.end(), [&](int a, int b) { return nodes[a].score > nodes[b].score; });
    ranked.resize(std::min(static_cast<int>(ranked.size()), kept));
    ranked.push_back(0);
    std::sort(ranked.begin(), ranked.end());
    for (size_t i = 0; i < ranked.size(); i++) {
        const Node& node = nodes[ranked[i]];
        nodes_tokens[i] = node.token;
        parents[i] = node.parent < 0 ? -1
                                     : static_cast<int32_t>(std::lower_bound(ranked.begin(), ranked.end(), node.parent) -
                                                            ranked.begin());
    }
    return static_cast<int>(ranked.size());
}

// Logits [heads][vocabulary] of Medusa heads for one hidden state. `blocks` [layers][of], `biases` [layers][of][width] and
// `lm_heads` [of] are those of `of` heads, of which the first `heads` are computed.
void medusa_logits(const Matrix* blocks, const float* biases, const Matrix* lm_heads, int layers, int of, int heads,
                   const float* hidden, float* logits) {
    const int width = lm_heads->inputs, vocabulary = lm_heads->outputs;
    static thread_local std::vector<float> x, inner;
    inner.resize(width);
    for (int head = 0; head < heads; head++) {
        x.assign(hidden, hidden + width);
        for (int layer = 0; layer < layers; layer++) {
            linear(x.data(), 1, blocks[layer * of + head], inner.data());
            const float* bias = biases + (static_cast<size_t>(layer) * of + head) * width;
            for (int i = 0; i < width; i += LANES) {
                const Vector value = load(&inner[i]) + load(bias + i);
                store(&x[i], load(&x[i]) + value / (1.f + exponential(-value)));
            }
        }
        linear(x.data(), 1, lm_heads[head], logits + static_cast<size_t>(head) * vocabulary);
    }
}

}  // extern "C"
