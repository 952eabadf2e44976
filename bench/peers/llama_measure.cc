// Measures llama.cpp or ik_llama.cpp with a model file, one command a line on stdin, one line of
// JSON for each. Built by compare_model.py against the header of either (IK_LLAMA for the latter).
//
//   decode KV DEPTH COUNT   milliseconds of COUNT tokens, one at a time, behind DEPTH tokens
//   prefill KV COUNT        milliseconds of COUNT tokens in one batch, into an empty cache
//   loss FILE               mean loss of the token ids in FILE, from the second one on
//
// KV: f16, q8_0, q4_0 (with flash attention), or f16-noflash. Every time comes with that of the
// process's processors, which tells how much of it other programs took.
#include <ctime>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

constexpr int kSeedTokens = 512;  // Evaluated; deeper caches repeat their rows.
constexpr int kBatch = 512;
constexpr int kRoom = 1024;  // Of a context, behind its depth.

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "llama_measure: %s\n", what.c_str());
  std::exit(1);
}

double WallMs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}
double ProcessorMs() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
}

struct Times {
  std::vector<double> wall;
  std::vector<double> processor;

  template <class Body>
  void Take(const Body& body) {
    const double processor_before = ProcessorMs();
    const double before = WallMs();
    body();
    wall.push_back(WallMs() - before);
    processor.push_back(ProcessorMs() - processor_before);
  }
  void Print() const {
    const auto list = [](const char* name, const std::vector<double>& values) {
      std::printf("\"%s\": [", name);
      for (size_t i = 0; i < values.size(); ++i)
        std::printf("%s%.4f", i > 0 ? ", " : "", values[i]);
      std::printf("]");
    };
    std::printf("{");
    list("ms", wall);
    std::printf(", ");
    list("processor_ms", processor);
    std::printf("}\n");
    std::fflush(stdout);
  }
};

// The calls that the two name differently.
#ifdef IK_LLAMA
void FreeModel(llama_model* model) { llama_free_model(model); }
void Clear(llama_context* context) { llama_kv_cache_clear(context); }
void CopySequence(llama_context* context, int from, int to) {
  llama_kv_cache_seq_cp(context, from, to, -1, -1);
}
void RemoveSequence(llama_context* context, int seq, int from) {
  llama_kv_cache_seq_rm(context, seq, from, -1);
}
void SetFlash(llama_context_params& params, bool flash) { params.flash_attn = flash; }
#define PMKVQ_NO_FLAGS , 0
#else
void FreeModel(llama_model* model) { llama_model_free(model); }
void Clear(llama_context* context) { llama_memory_clear(llama_get_memory(context), true); }
void CopySequence(llama_context* context, int from, int to) {
  llama_memory_seq_cp(llama_get_memory(context), from, to, -1, -1);
}
void RemoveSequence(llama_context* context, int seq, int from) {
  llama_memory_seq_rm(llama_get_memory(context), seq, from, -1);
}
void SetFlash(llama_context_params& params, bool flash) {
  params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.kv_unified = true;  // CopySequence wants it.
}
#define PMKVQ_NO_FLAGS
#endif

class Peer {
 public:
  Peer(const std::string& path, int threads) : threads_(threads) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    model_ = llama_model_load_from_file(path.c_str(), params);
    if (model_ == nullptr) Fail("cannot load " + path);
    vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
  }
  ~Peer() {
    for (auto& [key, context] : contexts_) llama_free(context.of);
    FreeModel(model_);
  }

  Times Decode(const std::string& kv, int depth, int count) {
    Context& context = Deep(kv, depth);
    Times times;
    for (int i = 0; i < count; ++i) {
      times.Take([&] { Evaluate(context.of, {Token(i)}, context.position, true); });
      ++context.position;
    }
    // Back to the depth, which a copied cache has more than its positions say.
    RemoveSequence(context.of, 0, context.position - count);
    context.position -= count;
    return times;
  }

  Times Prefill(const std::string& kv, int count) {
    Context& context = Deep(kv, 0);
    Clear(context.of);
    context.position = 0;
    std::vector<int> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(Token(i));
    Times times;
    times.Take([&] { Evaluate(context.of, tokens, 0, true); });
    Clear(context.of);
    return times;
  }

  // The texts of FILE, one a line.
  void PrintLoss(const std::string& path) {
    std::ifstream file(path);
    double loss = 0;
    int predictions = 0;
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::vector<int> tokens;
      for (int token = 0; words >> token;) tokens.push_back(token);
      llama_context* context = NewContext("f16", static_cast<int>(tokens.size()));
      for (size_t begin = 0; begin + 1 < tokens.size(); begin += kBatch) {
        const size_t end = std::min(tokens.size(), begin + kBatch);
        const std::vector<int> piece(tokens.begin() + static_cast<long>(begin),
                                     tokens.begin() + static_cast<long>(end));
        Evaluate(context, piece, static_cast<int>(begin), false);
        for (size_t i = begin; i < end && i + 1 < tokens.size(); ++i) {
          const float* logits = llama_get_logits_ith(context, static_cast<int>(i - begin));
          const float most = *std::max_element(logits, logits + vocabulary_);
          double sum = 0;
          for (int v = 0; v < vocabulary_; ++v)
            sum += std::exp(static_cast<double>(logits[v] - most));
          loss += std::log(sum) - static_cast<double>(logits[tokens[i + 1]] - most);
          ++predictions;
        }
      }
      llama_free(context);
    }
    std::printf("{\"loss\": %.6f, \"predictions\": %d}\n", loss / predictions, predictions);
    std::fflush(stdout);
  }

 private:
  struct Context {
    llama_context* of = nullptr;
    int position = 0;
  };

  int Token(int i) const { return 100 + (i * 7919) % std::min(20000, vocabulary_ - 100); }

  llama_context* NewContext(const std::string& kv, int tokens) {
    llama_context_params params = llama_context_default_params();
    const bool flash = kv != "f16-noflash";
    params.n_ctx = static_cast<uint32_t>(tokens + kRoom);
    params.n_batch = kBatch;
    params.n_ubatch = kBatch;
    params.n_seq_max = 2;
    params.n_threads = static_cast<uint32_t>(threads_);
    params.n_threads_batch = static_cast<uint32_t>(threads_);
    params.type_k = kv == "q8_0" ? GGML_TYPE_Q8_0 : kv == "q4_0" ? GGML_TYPE_Q4_0 : GGML_TYPE_F16;
    params.type_v = params.type_k;
    SetFlash(params, flash);
    llama_context* context = llama_init_from_model(model_, params);
    if (context == nullptr) Fail("no context with " + kv);
    return context;
  }

  // Logits of the last token, or of all.
  void Evaluate(llama_context* context, const std::vector<int>& tokens, int position, bool last) {
    llama_batch batch = llama_batch_init(static_cast<int>(tokens.size()), 0, 1);
    batch.n_tokens = static_cast<int>(tokens.size());
    for (int i = 0; i < batch.n_tokens; ++i) {
      batch.token[i] = tokens[static_cast<size_t>(i)];
      batch.pos[i] = position + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = static_cast<int8_t>(!last || i + 1 == batch.n_tokens);
    }
    const int failed = llama_decode(context, batch);
    if (failed == 0 && llama_get_logits_ith(context, batch.n_tokens - 1) == nullptr) {
      Fail("no logits");
    }
    llama_batch_free(batch);
    if (failed != 0) Fail("llama_decode answers " + std::to_string(failed));
  }

  // Rows of kSeedTokens tokens are evaluated, saved, and loaded again and again as sequence 1,
  // whose cells sequence 0 then takes. Their positions repeat; types, bytes and the cells that a
  // token attends to are those of a true prompt.
  Context& Deep(const std::string& kv, int depth) {
    Context& context = contexts_[kv + " " + std::to_string(depth)];
    if (context.of != nullptr) return context;
    context.of = NewContext(kv, depth);
    if (depth == 0) return context;
    std::vector<int> tokens;
    for (int i = 0; i < kSeedTokens; ++i) tokens.push_back(Token(i));
    Evaluate(context.of, tokens, 0, true);
    std::vector<uint8_t> state(llama_state_seq_get_size(context.of, 0 PMKVQ_NO_FLAGS));
    state.resize(
        llama_state_seq_get_data(context.of, state.data(), state.size(), 0 PMKVQ_NO_FLAGS));
    for (int filled = kSeedTokens; filled < depth; filled += kSeedTokens) {
      if (llama_state_seq_set_data(context.of, state.data(), state.size(), 1 PMKVQ_NO_FLAGS) == 0) {
        Fail("the state was not taken");
      }
      CopySequence(context.of, 1, 0);
      RemoveSequence(context.of, 1, -1);
    }
    context.position = kSeedTokens;
    return context;
  }

  int threads_;
  llama_model* model_ = nullptr;
  int vocabulary_ = 0;
  std::map<std::string, Context> contexts_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) Fail("usage: llama_measure MODEL THREADS");
  Times load;
  Peer* peer = nullptr;
  load.Take([&] { peer = new Peer(argv[1], std::atoi(argv[2])); });
  load.Print();
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    std::string kv;
    words >> command >> kv;
    int first = 0;
    int second = 0;
    words >> first >> second;
    if (command == "decode") {
      peer->Decode(kv, first, second).Print();
    } else if (command == "prefill") {
      peer->Prefill(kv, first).Print();
    } else if (command == "loss") {
      peer->PrintLoss(kv);
    } else {
      Fail("unknown command " + command);
    }
  }
  delete peer;
}
