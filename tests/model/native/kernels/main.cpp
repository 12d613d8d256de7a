// Random steps of small random models, for sanitizers to look at (tests/model/native/test_kernels.py).
//
// Decoders of odd shapes; sequences of random lengths whose block tables are exactly as long as
// they must be; steps of every size from none to the largest; a NaN now and then.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "decoder.cpp"

using tickertape::Shape;
using tickertape::ForwardArgs;

namespace {

std::mt19937 engine(1);

int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }

// Floats on the heap, to the byte; on a grid of sixteen steps if `four_bits`.
std::vector<float> random_floats(size_t count, bool four_bits = false) {
    std::vector<float> x(count);
    std::normal_distribution<float> normal(0.0f, 0.3f);
    for (size_t i = 0; i < count; ++i)
        x[i] = four_bits ? 0.05f * (i % 16) - 0.35f : normal(engine);
    return x;
}

struct Model {
    Shape shape;
    bool four_bits, biases, norms;
    int window;
};

void load(Decoder* decoder, const Model& model) {
    const Shape& s = model.shape;
    const auto matrix = [&](int layer, int which, int outputs, int inputs, bool bias) {
        const std::vector<float> w = random_floats(size_t(outputs) * inputs, model.four_bits);
        const std::vector<float> b = random_floats(outputs);
        tickertape_set_matrix(decoder, layer, which, w.data(), bias ? b.data() : nullptr, outputs,
                              inputs);
    };
    const auto norm = [&](int layer, int which, int count) {
        const std::vector<float> gains(count, 1.0f);
        tickertape_set_norm(decoder, layer, which, gains.data(), count);
    };
    const int queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim;
    for (int layer = 0; layer < s.layers; ++layer) {
        matrix(layer, 0, queries + 2 * keys, s.hidden, model.biases);
        matrix(layer, 1, s.hidden, queries, model.biases);
        matrix(layer, 2, 2 * s.inner, s.hidden, model.biases);
        matrix(layer, 3, s.hidden, s.inner, model.biases);
        norm(layer, 0, s.hidden);
        norm(layer, 1, s.hidden);
        if (model.norms) {
            norm(layer, 2, s.head_dim);
            norm(layer, 3, s.head_dim);
        }
        tickertape_set_layer(decoder, layer, layer ? model.window : 0, layer != 1);
    }
    if (!s.tied) matrix(0, 4, s.vocab, s.hidden, false);
    matrix(0, 5, s.vocab, s.hidden, false);
    norm(0, 4, s.hidden);
    const std::vector<float> angles = random_floats(size_t(s.max_positions) * s.head_dim / 2);
    tickertape_set_rotary(decoder, angles.data(), angles.data(), s.max_positions);
}

// One step of `counts[i]` new tokens of sequence i, which has `lengths[i]`; each has its own blocks.
void step(Decoder* decoder, const Shape& s, std::vector<int>& lengths, const std::vector<int>& counts) {
    const int per_sequence = (s.max_positions + 15) / 16;
    std::vector<int32_t> tokens, start, rows, outputs;
    std::vector<std::vector<int32_t>> blocks(counts.size());
    std::vector<const int32_t*> tables;
    for (size_t i = 0; i < counts.size(); ++i) {
        start.push_back(lengths[i]);
        rows.push_back(counts[i]);
        lengths[i] += counts[i];
        for (int block = 0; block < (lengths[i] + 15) / 16; ++block)
            blocks[i].push_back(int(i) * per_sequence + block);
        tables.push_back(blocks[i].data());
        for (int k = 0; k < counts[i]; ++k) tokens.push_back(pick(0, s.vocab - 1));
        if (counts[i] && pick(0, 2) && int(outputs.size()) < s.max_outputs)
            outputs.push_back(int(tokens.size()) - 1);
    }
    std::vector<float> score(outputs.size());
    std::vector<int32_t> best(outputs.size()), only_best(outputs.size());
    for (int32_t& only : only_best) only = pick(0, 1);
    const ForwardArgs step{int(tokens.size()), int(counts.size()), int(outputs.size()), tokens.data(),
                    start.data(), rows.data(), tables.data(), outputs.data(),
                    only_best.data(), best.data(), score.data()};
    tickertape_step(decoder, &step);
    for (int32_t token : best)
        if (token < 0 || token >= s.vocab) std::abort();
}

void exercise(const Model& model) {
    const Shape& s = model.shape;
    Decoder* decoder = tickertape_new(&s);
    load(decoder, model);
    const int sequences = s.blocks / ((s.max_positions + 15) / 16);
    std::vector<int> lengths(sequences);
    step(decoder, s, lengths, {});
    step(decoder, s, lengths, {std::min(s.max_rows, s.max_positions)});
    for (int round = 0; round < 6; ++round) {
        int left = s.max_rows;
        std::vector<int> counts;
        for (int i = 0; i < sequences; ++i) {
            const int most = std::min(left, s.max_positions - lengths[i]);
            counts.push_back(round % 2 ? std::min(most, 1) : pick(0, most));
            left -= counts.back();
        }
        step(decoder, s, lengths, counts);
        tickertape_copy_block(decoder, pick(0, s.blocks - 1), pick(0, s.blocks - 1));
        if (round == 3) std::memset(tickertape_block(decoder, 0, pick(0, s.blocks - 1)), 0xff, 64);
    }
    const size_t record = tickertape::KVCache::record_bytes(s.head_dim);
    std::memset(tickertape_block(decoder, 0, 0), 0xff, record);  // every scale of a head is NaN
    for (int& length : lengths) length = std::min(length, s.max_positions - 1);
    step(decoder, s, lengths, std::vector<int>(size_t(std::min(sequences, s.max_rows)), 1));
    tickertape_free(decoder);
}

}  // namespace

int main() {
    // layers hidden inner heads kv head_dim vocab tied | blocks rows outputs positions threads eps
    exercise({{2, 64, 64, 4, 1, 16, 97, 1, 90, 40, 9, 90, 2, 1e-6f}, true, false, false, 7});
    exercise({{2, 64, 128, 4, 4, 80, 33, 0, 60, 30, 12, 100, 3, 1e-6f}, false, true, false, 70});
    exercise({{1, 128, 64, 14, 2, 32, 64, 0, 70, 13, 13, 65, 1, 1e-6f}, true, true, true, 0});
    exercise({{1, 64, 192, 8, 1, 128, 31, 1, 12, 64, 3, 64, 4, 1e-6f}, false, false, true, 16});
    exercise({{1, 64, 64, 6, 2, 32, 1, 1, 12, 25, 4, 17, 2, 1e-6f}, false, false, true, 16});
    exercise({{1, 64, 64, 10, 2, 32, 50, 1, 12, 24, 1, 33, 2, 1e-6f}, false, false, true, 16});
    // So many sequences that each thread takes its own, and nobody waits for anybody in between.
    exercise({{2, 64, 64, 4, 2, 16, 64, 1, 80, 80, 40, 32, 2, 1e-6f}, false, false, false, 0});
    std::puts("clean");
}
