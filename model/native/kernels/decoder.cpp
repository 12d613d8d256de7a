// A whole decoder step in one call: embedding, layers over a paged 8-bit KV cache, head.
//
// The mathematics is that of model/decoder: pre-norm layers with rotary grouped-query attention and a
// gated MLP, with biases, head norms and sliding windows where a model has them. What Python
// sees is the C interface at the end (model/native/library.py binds it).

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "kv_cache.h"
#include "matmul.h"
#include "memory.h"
#include "simd.h"
#include "threads.h"
#include "tiles.h"

namespace tickertape {

struct Shape {
    int32_t layers, hidden, inner, heads, kv_heads, head_dim, vocab, tied;
    int32_t blocks, max_rows, max_outputs, max_positions, threads;
    float eps;
};

// One step: rows of new tokens, sequence after sequence.
struct ForwardArgs {
    int32_t rows, sequences, outputs;
    const int32_t* tokens;       // [rows]
    const int32_t* starts;       // [sequences] position of each one's first row
    const int32_t* counts;       // [sequences] rows of each
    const int32_t* const* tables;  // [sequences] each one's block table
    const int32_t* output_rows;  // [outputs] rows whose logits are wanted
    const int32_t* only_best;    // [outputs] not 0: their argmax is enough
    int32_t* best;               // [outputs] argmax
    float* best_score;           // [outputs] NaN where the row has failed
};

struct Linear {
    Weights weights;
    std::vector<float> bias;  // empty, or one for every output of every panel
};

struct Layer {
    Linear qkv, out, gate_up, down;
    std::vector<float> attention_norm, mlp_norm, query_norm, key_norm;
    int window = 0;  // positions that a row sees, itself included; 0: all
    bool rotates = true;
};

// Some query heads of rows of one sequence that read the same KV head: `count` of them from head `head` of
// its group and row `row` on, row after row.
struct AttentionTask {
    int sequence, kv_head, row, head, count;
};

// From so many rows for each thread on, threads share out the rows; with fewer, the outputs of each
// product. The first way reads all weights once per thread, the second hands every row from
// thread to thread twice in each layer.
constexpr int kRowsToShare = 10;

enum LayerPhase { kAttentionNorm, kQkv, kRope, kAttention, kQuantizeAttended, kOut, kMlpNorm,
                  kGateUp, kQuantizeInner, kDown, kPhasesPerLayer };

class Decoder {
  public:
    explicit Decoder(const Shape& shape)
        : shape_(shape),
          layers_(shape.layers),
          final_norm_(shape.hidden),
          cache_(shape.layers, shape.blocks, shape.kv_heads, shape.head_dim),
          team_(shape.threads, shape.layers * kPhasesPerLayer + 3),
          x_(size_t(shape.max_rows) * shape.hidden),
          wide_(size_t(shape.max_rows) * wide_width()),
          attended_(size_t(shape.max_rows) * query_width()),
          query_(size_t(shape.max_rows) * query_width()),
          query_scale_(size_t(shape.max_rows) * shape.heads),
          query_start_(size_t(shape.max_rows) * shape.heads),
          input_(shape.max_rows / kMostRows + 1 + shape.threads,
                 std::max({shape.hidden, shape.inner, query_width()})),
          best_(size_t(shape.threads) * shape.max_outputs),
          logits_(size_t(shape.max_outputs) * shape.vocab),
          own_rows_(shape.threads),
          warm_(shape.threads) {
        for (int i = 0; i < shape.threads; ++i) {
            scores_.emplace_back(shape.max_positions);
            row_.emplace_back(std::max(shape.hidden, 2 * shape.head_dim));
        }
    }

    Shape shape_;
    Arena arena_;  // of all weights
    std::vector<Layer> layers_;
    Weights embedding_;
    Linear head_;
    std::vector<float> final_norm_;
    std::vector<float> cos_, sin_;  // [positions][head_dim / 2]
    KVCache cache_;

    int query_width() const { return shape_.heads * shape_.head_dim; }
    int key_width() const { return shape_.kv_heads * shape_.head_dim; }
    int qkv_width() const { return query_width() + 2 * key_width(); }
    int group() const { return shape_.heads / shape_.kv_heads; }  // queries that share a KV head
    int wide_width() const { return std::max(qkv_width(), shape_.inner); }

    const float* logits() const { return logits_.data(); }

    void run(const ForwardArgs& step) {
        if (step.rows == 0) return;
        step_ = &step;
        plan();
        team_.run([this](int member) { walk(member); });
    }

  private:
    // Whose keys and values are in a thread's caches.
    struct Reading {
        const Layer* layer = nullptr;
        int sequence = 0, kv_head = 0;
        bool operator==(const Reading&) const = default;
    };

    struct Best {
        Floats score;
        Ints token;
        Mask failed;  // where a score was NaN or infinite
    };

    // What comes out of one panel for one row, in the weights' scales and with its bias.
    struct Result {
        const float* y;
        const float* scales;
        const float* bias;  // null where there is none

        Floats operator()(int n) const {
            const Floats value = Floats::load(y + n) * Floats::load(scales + n);
            return bias ? value + Floats::load(bias + n) : value;
        }
    };

    // ---- what is decided before the threads start

    void plan() {
        const int members = team_.size();
        by_rows_ = members > 1 && step_->rows >= kRowsToShare * members;
        tiling_ = Tiling(step_->rows, highest_tile(step_->rows, has_tiles_),
                         by_rows_ ? members : 1);
        output_tiling_ = Tiling(step_->outputs, highest_tile(step_->outputs, has_tiles_), 1);
        sequence_of_.clear();
        positions_.clear();
        for (int sequence = 0; sequence < step_->sequences; ++sequence)
            for (int i = 0; i < step_->counts[sequence]; ++i) {
                sequence_of_.push_back(sequence);
                positions_.push_back(step_->starts[sequence] + i);
            }
        // Not by comparing counts: a sequence may have no row, and another then two.
        only_decodes_ = *std::max_element(step_->counts, step_->counts + step_->sequences) == 1;
        for (std::vector<int>& rows : own_rows_) rows.clear();
        for (int m = 0; m < step_->rows; ++m)
            own_rows_[tiling_.tile_of(m) % members].push_back(m);
        plan_attention();
    }

    // Tasks that read the same keys lie together.
    void plan_attention() {
        tasks_.assign(by_rows_ ? team_.size() : 1, {});
        for (int sequence = 0, row = 0; sequence < step_->sequences; ++sequence) {
            const int end = row + step_->counts[sequence];
            for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head)
                for (int m = row, next; m < end; m = next) {
                    const int tile = tiling_.tile_of(m);
                    next = std::min(end, tiling_.first(tile + 1));
                    add_tasks(tasks_[tile % tasks_.size()], sequence, kv_head, m, next - m);
                }
            row = end;
        }
    }

    // Too few rows to keep every thread busy: one task for each query head.
    void add_tasks(std::vector<AttentionTask>& tasks, int sequence, int kv_head, int row, int rows) {
        const bool few = step_->rows * shape_.kv_heads < 4 * team_.size();
        const int queries = rows * group();
        const int most = few ? 1 : most_queries(has_tiles_, shape_.head_dim);
        const int count = (queries + most - 1) / most;
        for (int i = 0; i < count; ++i) {
            const int first = queries * i / count, next = queries * (i + 1) / count;
            tasks.push_back({sequence, kv_head, row + first / group(), first % group(), next - first});
        }
    }

    // ---- what the phases are made of

    float* x(int m) { return x_.data() + size_t(m) * shape_.hidden; }
    const Weights& embedding_table() const { return shape_.tied ? head_.weights : embedding_; }

    // Work on rows: a member's own, or whichever come next.
    template <typename Work>
    void each_row(int& phase, int member, Work&& work) {
        if (by_rows_) {
            for (int m : own_rows_[member]) work(m);
            ++phase;
        } else {
            take_rows(phase, step_->rows, work);
        }
    }

    template <typename Work>
    void take_rows(int& phase, int rows, Work&& work) {
        for (int m = team_.take(phase); m < rows; m = team_.take(phase)) work(m);
        ++phase;
        team_.barrier();
    }

    // input_ = quantized rms norm of the stream.
    void normalize(int& phase, const std::vector<float>& gains, int member) {
        each_row(phase, member, [&](int m) { normalize_row(m, x(m), gains, tiling_, member); });
    }

    void normalize_row(int m, const float* from, const std::vector<float>& gains,
                       const Tiling& tiling, int member) {
        float* y = row_[member].data();
        rms_norm(from, gains.data(), shape_.hidden, y);
        input_.set(tiling, m, y, shape_.hidden);
    }

    void rms_norm(const float* from, const float* gains, int n, float* to) const {
        const Floats inverse = Floats::all(1 / std::sqrt(sum_of_squares(from, n) / n + shape_.eps));
        for (int i = 0; i < n; i += kLanes)
            (Floats::load(from + i) * inverse * Floats::load(gains + i)).store(to + i);
    }

    // input_ = quantized rows of `width` floats, `stride` apart.
    void quantize_rows(int& phase, const float* from, int width, int stride, int member) {
        each_row(phase, member, [&](int m) {
            input_.set(tiling_, m, from + size_t(m) * stride, width);
        });
    }

    // input_ times a matrix; `use(m, panel, y)` takes what comes out, kPanel floats.
    template <typename Use>
    void product(int& phase, const Linear& linear, int member, Use&& use) {
        const int panels = linear.weights.panels();
        if (by_rows_) {
            // Each begins at another place, so that memory is read once, by all of them together.
            for (int i = 0, panel = member * panels / team_.size(); i < panels; ++i) {
                const int next = panel + 1 < panels ? panel + 1 : 0;
                multiply(linear, panel, next, tiling_, member, team_.size(), use);
                panel = next;
            }
            ++phase;
        } else {
            take_panels(phase, linear, tiling_, use);
        }
    }

    template <typename Use>
    void take_panels(int& phase, const Linear& linear, const Tiling& tiling, Use&& use) {
        const int panels = linear.weights.panels();
        for (int panel = team_.take(phase), next; panel < panels; panel = next) {
            next = team_.take(phase);
            multiply(linear, panel, std::min(next, panels - 1), tiling, 0, 1, use);
        }
        ++phase;
        team_.barrier();
    }

    template <typename Use>
    void multiply(const Linear& linear, int panel, int next, const Tiling& tiling, int first,
                  int step, Use&& use) {
        const float* bias =
            linear.bias.empty() ? nullptr : linear.bias.data() + size_t(panel) * kPanel;
        const float* scales = linear.weights.scales(panel);
        multiply_panel(linear.weights, panel, next, input_, tiling, first, tiling.count(), step,
                       [&](int m, const float* y) { use(m, panel, Result{y, scales, bias}); });
    }

    // Rows of queries, keys and values, and of the MLP; as far apart whatever their width.
    float* wide(int m) { return wide_.data() + size_t(m) * wide_width(); }

    auto store() {
        return [this](int m, int panel, Result y) {
            for (int n = 0; n < kPanel; n += kLanes) y(n).store(wide(m) + panel * kPanel + n);
        };
    }

    auto add_to_stream() {
        return [this](int m, int panel, Result y) {
            float* at = x(m) + panel * kPanel;
            for (int n = 0; n < kPanel; n += kLanes) (Floats::load(at + n) + y(n)).store(at + n);
        };
    }

    // Panels of gate_up hold sixteen gates, then the sixteen values that they act on.
    auto gate() {
        return [this](int m, int panel, Result y) {
            for (int n = 0; n < kPanel / 2; n += kLanes)
                (silu(y(n)) * y(kPanel / 2 + n)).store(wide(m) + panel * (kPanel / 2) + n);
        };
    }

    void rotate_and_write(const Layer& layer, int index, int m, int member) {
        const int d = shape_.head_dim;
        const float* qkv = wide(m);
        const float* keys = qkv + query_width();
        const float* values = keys + key_width();
        float* y = row_[member].data();
        for (int head = 0; head < shape_.heads; ++head) {
            rotate(layer, qkv + head * d, layer.query_norm, m, y);
            const float largest = largest_magnitude(y, d);
            const size_t at = size_t(m) * shape_.heads + head;
            query_start_[at] = without_offset(
                quantize(y, d, largest > 0 ? 127 / largest : 0, query_.data() + at * d));
            // Softmax in base 2: 2^(x log2 e) = e^x.
            query_scale_[at] = largest / 127 * 1.44269504f / std::sqrt(float(d));
        }
        const int position = positions_[m];
        const int block = table(sequence_of_[m])[position / kBlock];
        for (int head = 0; head < shape_.kv_heads; ++head) {
            rotate(layer, keys + head * d, layer.key_norm, m, y);
            cache_.write(index, block, position % kBlock, head, y, values + head * d);
        }
    }

    // Norm, if any, and rotary embedding of one head: dimension pair i is (i, i + d / 2).
    void rotate(const Layer& layer, const float* from, const std::vector<float>& gains, int m,
                float* to) {
        const int d = shape_.head_dim, half = d / 2;
        const float* cos = cos_.data() + size_t(positions_[m]) * half;
        const float* sin = sin_.data() + size_t(positions_[m]) * half;
        if (!gains.empty()) {
            rms_norm(from, gains.data(), d, to + d);
            from = to + d;
        }
        if (!layer.rotates) {
            std::copy(from, from + d, to);
            return;
        }
        for (int i = 0; i < half; i += 8) {
            const __m256 a = _mm256_loadu_ps(from + i), b = _mm256_loadu_ps(from + half + i);
            const __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
            _mm256_storeu_ps(to + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
            _mm256_storeu_ps(to + half + i, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
        }
    }

    const int32_t* table(int sequence) const { return step_->tables[sequence]; }

    void attend_all(int& phase, const Layer& layer, int index, int member) {
        if (by_rows_) {
            // Rows of one sequence may be anyone's: all keys must be there before they are read.
            if (!only_decodes_) team_.barrier();
            const std::vector<AttentionTask>& own = tasks_[member];
            for (size_t i = 0; i < own.size(); ++i)
                attend_to(own[i], i + 1 < own.size() ? &own[i + 1] : nullptr, layer, index, member);
            ++phase;
        } else {
            take_tasks(phase, layer, index, member);
        }
    }

    void take_tasks(int& phase, const Layer& layer, int index, int member) {
        const std::vector<AttentionTask>& all = tasks_[0];
        const int count = int(all.size());
        for (int task = team_.take(phase), next; task < count; task = next) {
            next = team_.take(phase);
            attend_to(all[task], next < count ? &all[next] : nullptr, layer, index, member);
        }
        ++phase;
        team_.barrier();
    }

    void attend_to(const AttentionTask& task, const AttentionTask* next, const Layer& layer,
                   int index, int member) {
        const int d = shape_.head_dim;
        Query queries[kMostQueries];
        for (int i = 0; i < task.count; ++i) {
            const int m = task.row + (task.head + i) / group();
            const int head = task.kv_head * group() + (task.head + i) % group();
            const size_t at = size_t(m) * shape_.heads + head;
            queries[i] = {query_.data() + at * d, query_scale_[at], query_start_[at],
                          first_seen(layer, m), positions_[m] + 1, attended_.data() + at * d};
        }
        attend(past(task, index), task.count, queries, scores_[member],
               upcoming(task, next, layer, index, member));
    }

    int first_seen(const Layer& layer, int m) const {
        return layer.window ? std::max(0, positions_[m] + 1 - layer.window) : 0;
    }

    Past past(const AttentionTask& task, int index) {
        return {&cache_, index, task.kv_head, table(task.sequence)};
    }

    Upcoming upcoming(const AttentionTask& task, const AttentionTask* next, const Layer& layer,
                      int index, int member) {
        Reading& warm = warm_[member];
        const Reading now{&layer, task.sequence, task.kv_head};
        const bool cold = !(now == warm);
        warm = now;
        if (!next || (next->sequence == task.sequence && next->kv_head == task.kv_head)) return {cold};
        warm = {&layer, next->sequence, next->kv_head};
        const int m = next->row;
        return {cold, past(*next, index), 2 * (first_seen(layer, m) / kBlock),
                2 * (positions_[m] / kBlock + 1)};
    }

    void score_tokens(int& phase, int member) {
        Best* best = best_.data() + size_t(member) * shape_.max_outputs;
        for (int m = 0; m < step_->outputs; ++m)
            best[m] = {Floats::all(-INFINITY), Ints::all(-1), {}};
        take_panels(phase, head_, output_tiling_, [&](int m, int panel, Result y) {
            float* row = logits_.data() + size_t(m) * shape_.vocab;
            for (int n = 0; n < kPanel; n += kLanes) {
                const int first = panel * kPanel + n;
                const int left = std::clamp(shape_.vocab - first, 0, kLanes);
                const Mask real = Mask::between(0, left);
                const Floats scores = y(n);
                if (!step_->only_best[m]) scores.store(row + first, left);
                best[m].failed = best[m].failed | (real & not_finite(scores));
                const Mask better = real & less(best[m].score, scores);
                best[m].score = select(better, scores, best[m].score);
                best[m].token = select(better, Ints::count() + Ints::all(first), best[m].token);
            }
        });
    }

    // The best of all threads' bests; of equal ones the lowest token. NaN where any score failed.
    void choose_best() {
        for (int m = 0; m < step_->outputs; ++m) {
            float top = -INFINITY;
            int32_t token = -1;
            bool failed = false;
            for (int member = 0; member < team_.size(); ++member) {
                const Best& best = best_[size_t(member) * shape_.max_outputs + m];
                failed |= best.failed.any();
                float scores[kLanes];
                int32_t tokens[kLanes];
                best.score.store(scores);
                best.token.store(tokens);
                for (int i = 0; i < kLanes; ++i)
                    if (tokens[i] >= 0 &&
                        (scores[i] > top || (scores[i] == top && tokens[i] < token))) {
                        top = scores[i];
                        token = tokens[i];
                    }
            }
            step_->best[m] = std::max(token, 0);
            step_->best_score[m] = failed ? NAN : top;
        }
    }

    // ---- one member's way through the step

    void walk(int member) {
        const TileRegisters tiles(has_tiles_);
        int phase = 0;
        each_row(phase, member, [&](int m) { embedding_table().row(step_->tokens[m], x(m)); });
        for (int index = 0; index < shape_.layers; ++index) {
            const Layer& layer = layers_[index];
            normalize(phase, layer.attention_norm, member);
            product(phase, layer.qkv, member, store());
            each_row(phase, member, [&](int m) { rotate_and_write(layer, index, m, member); });
            attend_all(phase, layer, index, member);
            quantize_rows(phase, attended_.data(), query_width(), query_width(), member);
            product(phase, layer.out, member, add_to_stream());
            normalize(phase, layer.mlp_norm, member);
            product(phase, layer.gate_up, member, gate());
            quantize_rows(phase, wide_.data(), shape_.inner, wide_width(), member);
            product(phase, layer.down, member, add_to_stream());
        }
        if (step_->outputs == 0) return;
        team_.barrier();
        take_rows(phase, step_->outputs, [&](int m) {
            normalize_row(m, x(step_->output_rows[m]), final_norm_, output_tiling_, member);
        });
        score_tokens(phase, member);
        if (member == 0) choose_best();
    }

    const bool has_tiles_ = ask_for_tiles();
    Team team_;
    Buffer<float> x_, wide_, attended_;
    Buffer<int8_t> query_;
    Buffer<float> query_scale_;
    Buffer<int32_t> query_start_;
    Activations input_;
    Buffer<Best> best_;
    std::vector<Scores> scores_;
    std::vector<Buffer<float>> row_;
    std::vector<int> sequence_of_, positions_;  // of each row
    std::vector<std::vector<AttentionTask>> tasks_;  // for each member, or one list for all
    Buffer<float> logits_;
    std::vector<std::vector<int>> own_rows_;
    std::vector<Reading> warm_;
    Tiling tiling_, output_tiling_;
    bool by_rows_ = false, only_decodes_ = false;
    const ForwardArgs* step_ = nullptr;
};

enum Matrix { kMatrixQkv, kMatrixOut, kMatrixGateUp, kMatrixDown, kMatrixEmbedding, kMatrixHead };
enum Norm { kNormAttention, kNormMlp, kNormQuery, kNormKey, kNormFinal };

Linear make_linear(const float* weights, const float* bias, int outputs, int inputs, Arena& arena) {
    Linear linear{Weights(weights, outputs, inputs, arena), {}};
    if (bias) {
        linear.bias.assign(size_t(linear.weights.panels()) * kPanel, 0.0f);
        std::copy(bias, bias + outputs, linear.bias.begin());
    }
    return linear;
}

}  // namespace tickertape

// ---- what Python calls

using tickertape::Decoder;

extern "C" {

Decoder* tickertape_new(const tickertape::Shape* shape) try {
    return new Decoder(*shape);
} catch (const std::exception&) {  // no memory, or no threads
    return nullptr;
}

void tickertape_free(Decoder* decoder) { delete decoder; }

void tickertape_set_matrix(Decoder* decoder, int32_t layer, int32_t which, const float* weights,
                           const float* bias, int32_t outputs, int32_t inputs) {
    using namespace tickertape;
    Linear linear = make_linear(weights, bias, outputs, inputs, decoder->arena_);
    switch (which) {
        case kMatrixQkv: decoder->layers_[layer].qkv = std::move(linear); break;
        case kMatrixOut: decoder->layers_[layer].out = std::move(linear); break;
        case kMatrixGateUp: decoder->layers_[layer].gate_up = std::move(linear); break;
        case kMatrixDown: decoder->layers_[layer].down = std::move(linear); break;
        case kMatrixEmbedding: decoder->embedding_ = std::move(linear.weights); break;
        case kMatrixHead: decoder->head_ = std::move(linear); break;
    }
}

void tickertape_set_norm(Decoder* decoder, int32_t layer, int32_t which, const float* gains,
                         int32_t count) {
    using namespace tickertape;
    const std::vector<float> values(gains, gains + count);
    switch (which) {
        case kNormAttention: decoder->layers_[layer].attention_norm = values; break;
        case kNormMlp: decoder->layers_[layer].mlp_norm = values; break;
        case kNormQuery: decoder->layers_[layer].query_norm = values; break;
        case kNormKey: decoder->layers_[layer].key_norm = values; break;
        case kNormFinal: decoder->final_norm_ = values; break;
    }
}

// Tables of `positions` rows of head_dim / 2.
void tickertape_set_rotary(Decoder* decoder, const float* cos, const float* sin,
                           int32_t positions) {
    const size_t count = size_t(positions) * (decoder->shape_.head_dim / 2);
    decoder->cos_.assign(cos, cos + count);
    decoder->sin_.assign(sin, sin + count);
}

void tickertape_set_layer(Decoder* decoder, int32_t layer, int32_t window, int32_t rotates) {
    decoder->layers_[layer].window = window;
    decoder->layers_[layer].rotates = rotates != 0;
}

void tickertape_step(Decoder* decoder, const tickertape::ForwardArgs* step) { decoder->run(*step); }

void tickertape_copy_block(Decoder* decoder, int32_t from, int32_t to) {
    decoder->cache_.copy_block(decoder->shape_.layers, from, to);
}

// [max_outputs][vocab]: of the last step, its outputs, but for those whose argmax was enough.
const float* tickertape_logits(const Decoder* decoder) { return decoder->logits(); }

// Bytes of weights that a step with a single row reads.
int64_t tickertape_weight_bytes(const Decoder* decoder) {
    size_t total = decoder->head_.weights.bytes_read();
    for (const tickertape::Layer& layer : decoder->layers_)
        total += layer.qkv.weights.bytes_read() + layer.out.weights.bytes_read() +
                 layer.gate_up.weights.bytes_read() + layer.down.weights.bytes_read();
    return int64_t(total);
}

// Which instructions this was compiled for; their quantizations differ a little.
const char* tickertape_instructions() { return tickertape::kInstructions; }

// The bytes of one block of one layer, all KV heads: for tests.
uint8_t* tickertape_block(Decoder* decoder, int32_t layer, int32_t block) {
    return decoder->cache_.record(layer, block, 0);
}
}
