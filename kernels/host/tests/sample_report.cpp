#include "../../sample_report.cu"

#include "sample_case.hpp"

struct Row {
    std::vector<float> logits;
    u32 token, is_wanted, top;
    std::vector<u32> asked, mask;
};

void verify_logprob(const std::string& what, const std::vector<double>& values, double log_total, u32 token, float got) {
    double v = values[token];
    if (v == -INFINITY) {
        if (got != -INFINITY) fail(what + ": a token without probability has some");
        return;
    }
    double best = *std::max_element(values.begin(), values.end());
    check(what, token, got, v - best - log_total, 2e-7 * (std::fabs(v) + std::fabs(best) + 1.0 + std::fabs(log_total)));
}

void run(const std::vector<Row>& rows, int max_top, unsigned seed) {
    int vocab = int(rows[0].logits.size());
    std::vector<float> logits;
    std::vector<u32> asked, masks;
    Buffer<u32> tokens(rows.size() * 2);
    Buffer<ReportParams> params(rows.size());
    for (size_t i = 0; i < rows.size(); i++) {
        const Row& row = rows[i];
        u32 mask_start = row.mask.empty() ? NO_MASK : u32(masks.size());
        params[i] = ReportParams{row.is_wanted, row.top, u32(asked.size()), u32(row.asked.size()), mask_start};
        tokens[2 * i] = row.token;
        logits.insert(logits.end(), row.logits.begin(), row.logits.end());
        asked.insert(asked.end(), row.asked.begin(), row.asked.end());
        masks.insert(masks.end(), row.mask.begin(), row.mask.end());
    }
    auto device_logits = copy_of(logits);
    auto device_asked = copy_of(asked), device_masks = copy_of(masks);
    Buffer<ReportResult> results(rows.size());
    Buffer<TopToken> top(rows.size() * size_t(max_top));
    Buffer<float> asked_logprobs(asked.size());
    ReportArgs args{device_logits.get(), tokens.get(), params.get(),         device_masks.get(), device_asked.get(),
                    results.get(),       top.get(),    asked_logprobs.get(), vocab,              2,
                    max_top};
    token_logprobs(Dim3{unsigned(rows.size())}, Dim3{1024}, 0, &args, seed);

    size_t asked_at = 0;
    for (size_t i = 0; i < rows.size(); i++) {
        const Row& row = rows[i];
        std::string what = "log-probability in row " + std::to_string(i) + " of vocabulary " + std::to_string(vocab);
        if (!row.is_wanted) {
            if (results[i].rank != 0xffffffff) fail(what + ": not wanted");
            asked_at += row.asked.size();
            continue;
        }
        std::vector<double> values;
        for (size_t t = 0; t < row.logits.size(); t++) {
            bool allowed = row.mask.empty() || (row.mask[t / 32] >> t % 32 & 1);
            values.push_back(allowed ? sane(row.logits[t]) : -INFINITY);
        }
        std::vector<int> order = ranked(values);
        double total = 0.0;
        for (int t : order) total += std::exp(values[size_t(t)] - values[size_t(order[0])]);
        verify_logprob(what, values, std::log(total), row.token, results[i].logprob);
        u32 rank = 1;
        double own = values[row.token];
        for (u32 t = 0; t < values.size(); t++) rank += values[t] > own || (values[t] == own && t < row.token);
        check(what + ": rank", i, results[i].rank, rank, 0.0);
        size_t len = std::min({size_t(row.top), order.size(), size_t(MAX_TOP)});
        check(what + ": number of the best", i, results[i].top_len, double(len), 0.0);
        for (size_t j = 0; j < size_t(max_top); j++) {
            const TopToken& got = top[i * size_t(max_top) + j];
            check(what + ": the best", j, got.token, j < len ? order[j] : 0xffffffff, 0.0);
            if (j < len) verify_logprob(what + " among the best", values, std::log(total), got.token, got.logprob);
        }
        for (u32 t : row.asked) verify_logprob(what + " asked for", values, std::log(total), t, asked_logprobs[asked_at++]);
    }
}

void random_rows(int vocab, int count, unsigned seed) {
    Random random(uint64_t(vocab) + seed);
    std::vector<Row> rows;
    for (int i = 0; i < count; i++) {
        const u32 tops[] = {0, 1, 5, 20, 128, 1000};
        Row row;
        row.logits = random_logits(random, vocab);
        row.token = u32(random.below(vocab));
        row.is_wanted = u32(random.below(5) > 0);
        row.top = tops[random.below(6)];
        for (int j = random.below(4); j > 0; j--) row.asked.push_back(u32(random.below(vocab)));
        if (random.below(3) == 0) {
            for (int word = 0; word < (vocab + 31) / 32; word++) row.mask.push_back(u32(random.bits() & random.bits()));
        }
        rows.push_back(row);
    }
    run(rows, MAX_TOP, seed);
}

void special() {
    std::vector<float> equal(6000, 1.5f), hopeless(6000, -INFINITY), infinite(6000, -1.0f);
    hopeless[2] = NAN;
    infinite[100] = infinite[7] = INFINITY;
    infinite[50] = F32_MAX;
    std::vector<u32> nothing(188, 0), many(1500, 3);
    many[1400] = 5999;
    std::vector<Row> rows{{equal, 4000, 1, 7, many, {}},
                          {hopeless, 3, 1, 7, {2, 5}, {}},
                          {infinite, 100, 1, 3, {7, 8}, {}},
                          {equal, 1, 1, 2, {1}, nothing}};
    run(rows, 7, 1);
}

int main() {
    for_orders([](unsigned seed) {
        for (int vocab : {1, 7, 1000}) random_rows(vocab, 3, seed);
    });
    random_rows(33, 4, 3);
    random_rows(49999, 4, 4);
    special();
}
