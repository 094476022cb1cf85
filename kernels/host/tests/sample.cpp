#include "../../sample.cu"

#include "sample_case.hpp"

struct Row {
    SampleParams params{0, 0, 0.0f, 1.0f, 0.0f, 0, 0, 0, 0, NO_MASK};
    std::vector<TokenEdit> edits;
    std::vector<u32> mask;  // empty: none
    std::vector<float> logits;

    bool allows(int token) const { return mask.empty() || (mask[size_t(token) / 32] >> token % 32 & 1); }
    bool is_banned(int token) const {
        for (const TokenEdit& edit : edits) {
            if (edit.is_banned && edit.token == u32(token)) return true;
        }
        return false;
    }
};

// The definition, step by step: every token's probability; all 0 if there is no candidate.
std::vector<double> probabilities(const Row& row, double top_p, double min_p) {
    std::vector<double> values(row.logits.size());
    for (size_t t = 0; t < values.size(); t++) values[t] = sane(row.logits[t]);
    for (const TokenEdit& edit : row.edits) {
        double& v = values[edit.token];
        if (v > -INFINITY) v = sane(v + edit.bias);
        if (v > -INFINITY) v = sane(v > 0.0 ? v / edit.repetition : v * edit.repetition);
        if (v > -INFINITY) v = sane(v - edit.subtract);
        if (edit.is_banned) v = -INFINITY;
    }
    for (size_t t = 0; t < values.size(); t++) {
        if (!row.allows(int(t))) values[t] = -INFINITY;
    }
    std::vector<int> order = ranked(values);
    std::vector<double> result(values.size(), 0.0);
    if (order.empty()) return result;
    if (!(row.params.temperature > 0.0f)) {
        result[size_t(order[0])] = 1.0;
        return result;
    }
    double best = values[size_t(order[0])];
    auto mass = [&](int t) { return std::exp((values[size_t(t)] - best) / row.params.temperature); };
    if (row.params.top_k > 0 && row.params.top_k < order.size()) order.resize(row.params.top_k);
    if (top_p < 1.0) {
        double total = 0.0, sum = 0.0;
        for (int t : order) total += mass(t);
        size_t count = 0;
        while (count == 0 || (sum < top_p * total && count < order.size())) sum += mass(order[count++]);
        order.resize(count);
    }
    double total = 0.0;
    for (int t : order) total += mass(t) >= std::fmin(min_p, 1.0) ? mass(t) : 0.0;
    for (int t : order) result[size_t(t)] = mass(t) >= std::fmin(min_p, 1.0) ? mass(t) / total : 0.0;
    return result;
}

// Philox4x32-10 in 64-bit arithmetic.
double uniform(const SampleParams& p) {
    uint64_t c[4] = {p.position & 0xffffffff, p.position >> 32, p.choice, 0}, k[2] = {p.seed & 0xffffffff, p.seed >> 32};
    for (int round = 0; round < 10; round++) {
        uint64_t left = 0xd2511f53 * c[0], right = 0xcd9e8d57 * c[2];
        uint64_t first = (right >> 32) ^ c[1] ^ k[0], third = (left >> 32) ^ c[3] ^ k[1];
        c[0] = first;
        c[1] = right & 0xffffffff;
        c[2] = third;
        c[3] = left & 0xffffffff;
        k[0] = (k[0] + 0x9e3779b9) & 0xffffffff;
        k[1] = (k[1] + 0xbb67ae85) & 0xffffffff;
    }
    return double((c[0] << 32 | c[1]) >> 11) / 9007199254740992.0;
}

// Whether the row's random number falls on `token`, give or take rounding: of the cuts as of the draw.
bool fits(const Row& row, u32 token, double slack) {
    double u = uniform(row.params);
    if (!(row.params.temperature > 0.0f)) slack = 0.0;
    for (int nudge = 0; nudge < 5; nudge++) {
        double top_p = row.params.top_p * (nudge == 1 ? 1.0 - slack : nudge == 2 ? 1.0 + slack : 1.0);
        double min_p = row.params.min_p * (nudge == 3 ? 1.0 - slack : nudge == 4 ? 1.0 + slack : 1.0);
        std::vector<double> p = probabilities(row, top_p, min_p);
        double below = 0.0;
        for (u32 t = 0; t < token; t++) below += p[t];
        if (p[token] > 0.0 && u >= below - slack && u <= below + p[token] + slack) return true;
    }
    return false;
}

std::vector<SampleResult> run(const std::vector<Row>& rows, unsigned seed) {
    int vocab = int(rows[0].logits.size()), stride = (vocab + 3) / 4 * 4;
    std::vector<float> logits;
    std::vector<TokenEdit> edits;
    std::vector<u32> masks;
    Buffer<SampleParams> params(rows.size());
    for (size_t i = 0; i < rows.size(); i++) {
        params[i] = rows[i].params;
        params[i].edits_start = u32(edits.size());
        params[i].edits_len = u32(rows[i].edits.size());
        params[i].mask_start = rows[i].mask.empty() ? NO_MASK : u32(masks.size());
        logits.insert(logits.end(), rows[i].logits.begin(), rows[i].logits.end());
        edits.insert(edits.end(), rows[i].edits.begin(), rows[i].edits.end());
        masks.insert(masks.end(), rows[i].mask.begin(), rows[i].mask.end());
    }
    auto device_logits = copy_of(logits);
    auto device_edits = copy_of(edits);
    auto device_masks = copy_of(masks);
    Buffer<float> edited(rows.size() * size_t(stride));
    Buffer<SampleResult> results(rows.size());
    SampleArgs args{device_logits.get(), params.get(), device_edits.get(), device_masks.get(),
                    edited.get(),        results.get(), vocab,             stride};
    sample(Dim3{unsigned(rows.size())}, Dim3{1024}, 0, &args, seed);
    if (memcmp(device_logits.get(), logits.data(), logits.size() * 4)) fail("sample changes its logits");
    return {results.get(), results.get() + rows.size()};
}

std::string describe(const Row& row) {
    const SampleParams& p = row.params;
    char text[200];
    snprintf(text, sizeof(text), "vocabulary %zu, temperature %g, top_k %u, top_p %g, min_p %g, %zu edits, mask %d",
             row.logits.size(), p.temperature, p.top_k, p.top_p, p.min_p, row.edits.size(), int(!row.mask.empty()));
    return text;
}

void verify(const Row& row, const SampleResult& got, double slack = 2e-6) {
    bool hopeless = true;
    for (double p : probabilities(row, row.params.top_p, row.params.min_p)) hopeless &= p == 0.0;
    if (got.token >= row.logits.size() || got.has_candidate != u32(!hopeless)) {
        fail("sample: no result for " + describe(row));
    }
    if (hopeless) {
        u32 lowest = 0;
        while (lowest < row.logits.size() && (!row.allows(int(lowest)) || row.is_banned(int(lowest)))) lowest++;
        if (lowest == row.logits.size()) lowest = 0;
        if (got.token != lowest) fail("sample: not the lowest token: " + describe(row));
    } else if (!fits(row, got.token, slack)) {
        fail("sample: token " + std::to_string(got.token) + " for " + describe(row));
    }
}

Row random_row(Random& random, int vocab) {
    Row row;
    auto pick = [&](std::vector<float> of) { return of[size_t(random.below(int(of.size())))]; };
    row.logits = random_logits(random, vocab);
    row.params.temperature = pick({0.0f, 0.3f, 0.8f, 1.0f, 1.5f, 50.0f});
    row.params.top_k = u32(pick({0, 0, 1, 7, 50, 1000000}));
    row.params.top_p = pick({1.0f, 1.0f, 0.0f, 0.5f, 0.95f});
    row.params.min_p = pick({0.0f, 0.0f, 0.1f, 1.0f});
    row.params.seed = random.bits();
    row.params.position = random.bits() >> 20;
    row.params.choice = u32(random.below(3));
    if (random.below(2) == 0) {
        for (int token = 0; token < vocab; token += 1 + random.below(1 + vocab / 10)) {
            float bias = random.range(-2.0f, 2.0f), repetition = pick({1.0f, 1.3f}), subtract = pick({0.0f, 0.7f});
            row.edits.push_back({u32(token), bias, repetition, subtract, u32(random.below(5) == 0)});
        }
    }
    if (random.below(3) == 0) {
        for (int word = 0; word < (vocab + 31) / 32; word++) row.mask.push_back(u32(random.bits() & random.bits()));
    }
    return row;
}

void random_rows(int vocab, int count, unsigned seed) {
    Random random(uint64_t(vocab) + seed);
    std::vector<Row> rows;
    for (int i = 0; i < count; i++) rows.push_back(random_row(random, vocab));
    std::vector<SampleResult> got = run(rows, seed);
    for (int i = 0; i < count; i++) verify(rows[size_t(i)], got[size_t(i)]);
}

// One set of logits under many parameters.
Row with(const std::vector<float>& logits, float temperature, u32 top_k, float top_p, float min_p, uint64_t position = 1) {
    Row row;
    row.logits = logits;
    row.params.temperature = temperature;
    row.params.top_k = top_k;
    row.params.top_p = top_p;
    row.params.min_p = min_p;
    row.params.seed = 7;
    row.params.position = position;
    return row;
}

// The set of tokens drawn at many positions.
std::vector<u32> drawn(Row row, int draws) {
    std::vector<Row> rows(size_t(draws), row);
    for (size_t i = 0; i < rows.size(); i++) rows[i].params.position = i;
    std::vector<u32> tokens;
    for (const SampleResult& got : run(rows, 1)) tokens.push_back(got.token);
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    return tokens;
}

void expect_tokens(const char* what, const std::vector<u32>& got, const std::vector<u32>& want) {
    if (got != want) fail(std::string("sample: tokens drawn with ") + what);
}

void ties() {
    std::vector<float> logits(300, 0.0f);
    logits[77] = logits[130] = logits[299] = 1.0f;
    expect_tokens("temperature 0", drawn(with(logits, 0.0f, 0, 1.0f, 0.0f), 1), {77});
    expect_tokens("NaN", drawn(with(logits, NAN, 0, 1.0f, 0.0f), 1), {77});
    expect_tokens("top_k 2", drawn(with(logits, 1.0f, 2, 1.0f, 0.0f), 8), {77, 130});
    expect_tokens("min_p 7", drawn(with(logits, 1.0f, 0, 1.0f, 7.0f), 12), {77, 130, 299});
    expect_tokens("a low temperature", drawn(with(logits, 1e-6f, 0, 1.0f, 0.0f), 12), {77, 130, 299});
    expect_tokens("the lowest temperature", drawn(with(logits, 1e-45f, 0, 0.5f, 0.0f), 8), {77, 130});
    // The two zeros are equal.
    expect_tokens("zeros", drawn(with({-1.0f, -0.0f, 0.0f}, 0.0f, 0, 1.0f, 0.0f), 1), {1});
    expect_tokens("top_k among zeros", drawn(with({-0.0f, 0.0f, 0.0f}, 1.0f, 2, 1.0f, 0.0f), 8), {0, 1});
    // Infinity is the largest finite number.
    expect_tokens("infinity", drawn(with({1.0f, INFINITY, F32_MAX, INFINITY}, 1.0f, 2, 1.0f, 0.0f), 8), {1, 2});
    expect_tokens("infinite temperature", drawn(with({-3.0f, 5.0f, NAN, 1.0f}, INFINITY, 0, 0.6f, 0.0f), 8), {1, 3});
}

// More candidates than shared memory holds: cuts over the whole row, down to the ids of equals.
void flat() {
    Random random(5);
    std::vector<float> logits(9001);
    for (float& v : logits) v = random.range(-0.5f, 0.5f);
    std::vector<float> equal(9001, 0.25f);
    std::vector<Row> rows{with(logits, 50.0f, 0, 0.7f, 0.0f), with(logits, 1.0f, 6000, 1.0f, 0.0f),
                          with(logits, 1.0f, 7000, 0.9f, 0.9f), with(equal, 1.0f, 0, 0.3f, 0.0f, 3),
                          with(equal, 1.0f, 5000, 1.0f, 0.0f, 4)};
    std::vector<SampleResult> got = run(rows, 1);
    for (size_t i = 0; i < rows.size(); i++) verify(rows[i], got[i]);
}

// Masses that need more than a single reach, and a row for which every token counts.
void wide() {
    Random random(6);
    std::vector<float> logits(5000);
    for (float& v : logits) v = -12.0f + random.range(0.0f, 1.0f);
    logits[4321] = 0.0f;
    std::vector<Row> rows;
    for (uint64_t position = 0; position < 4; position++) {
        rows.push_back(with(logits, 1.0f, 0, position % 2 ? 0.98f : 0.9999999f, 0.0f, position));
        rows.back().logits.resize(3997);
        rows.back().logits[1] = 0.0f;
    }
    std::vector<SampleResult> got = run(rows, 1);
    for (size_t i = 0; i < rows.size(); i++) verify(rows[i], got[i]);
}

// Nothing to draw: the lowest token that mask and bans leave, beyond the first 1024 too.
void hopeless() {
    std::vector<Row> rows(4, with(std::vector<float>(2600, -INFINITY), 1.0f, 0, 1.0f, 0.0f));
    rows[1].edits = {{1, 0, 1, 0, 1}, {0, 0, 1, 0, 1}, {2, 9, 1, 0, 0}};
    rows[2].mask.assign(82, 0);
    rows[2].mask[71] = 0x300;
    rows[2].edits = {{71 * 32 + 8, 0, 1, 0, 1}};
    rows[3].mask.assign(82, 0);
    rows[3].logits.assign(2600, NAN);
    std::vector<SampleResult> got = run(rows, 1);
    for (size_t i = 0; i < rows.size(); i++) verify(rows[i], got[i]);
}

int main() {
    for_orders([](unsigned seed) {
        for (int vocab : {5, 1000}) random_rows(vocab, 2, seed);
    });
    random_rows(1, 2, 3);
    random_rows(33, 6, 4);
    random_rows(4999, 5, 5);
    random_rows(50000, 3, 6);
    ties();
    flat();
    wide();
    hopeless();
}
