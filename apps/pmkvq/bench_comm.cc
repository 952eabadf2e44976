#include "bench_comm.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <sstream>
#include <vector>

#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/model/ranks/model_ranks.h"
#include "ranks.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

// Seconds of each exchange of the last task on this rank.
std::vector<double>& Measured() {
  static std::vector<double> seconds;
  return seconds;
}

struct Options {
  std::string model;
  std::string json;
  int64_t repeat = 200;
  int64_t tokens = 64;
  int threads = 0;
  WeightCommandOptions weights;
};

struct Exchange {
  int64_t bytes = 0;
  double sum_s = 0;
  double gather_s = 0;
};

double MedianOf(ModelRanks& ranks, const char* what, int64_t floats, int64_t repeat) {
  ranks.RunTask(fmt::format("{} {} {}", what, floats, repeat));
  return Median(Measured());
}

// Median seconds of a decode step with a cache of floats.
double StepSeconds(const Model& model, int64_t tokens, int threads) {
  CacheConfig config;
  config.geometry = model.kv_geometry();
  config.close_bits = config.floor_bits = 16;
  config.num_threads = threads;
  config.max_len = tokens;
  for (int64_t layer = 0; layer < config.geometry.num_layers(); ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, static_cast<size_t>(layer), tokens, 16, 16));
  }
  const std::unique_ptr<KvStore> store = MakePackedStore(model, config);
  const SequenceId seq = store->Open().value();
  ForwardWorkspace workspace;
  std::vector<double> seconds;
  for (int64_t i = 0; i < tokens; ++i) {
    const auto token = static_cast<int32_t>((7 * i + 3) % model.config().vocab_size);
    const ForwardChunk chunk{seq, {&token, 1}, i};
    const Clock::time_point start = Clock::now();
    if (store->Reserve(seq, 1) != ReserveResult::kReserved) {
      throw InvalidInput("bench comm", "the cache has no room for its tokens");
    }
    ThrowIfFailed(model.Forward({&chunk, 1}, *store, workspace, threads));
    if (i >= tokens / 4) seconds.push_back(SecondsSince(start));
  }
  return Median(seconds);
}

struct Prediction {
  double one_rank_s = 0;
  double exchanges_s = 0;
  double predicted_s = 0;
  double measured_s = 0;
};

// T_P = T_1 / P + 2 L t(4 E) + the logits (docs/distributed.md). T_1 is this rank alone, with as
// many threads as each rank has.
Prediction Predict(const Options& options, ModelRanks& ranks) {
  Prediction result;
  const int threads = ResolveThreads(options.threads);
  {
    const std::shared_ptr<const Model> alone =
        Model::Load(options.model, {.weights = options.weights.mode(), .num_threads = threads});
    result.one_rank_s = StepSeconds(*alone, options.tokens, threads);
  }
  const std::shared_ptr<const Model> model = options.weights.Load(options.model, options.threads);
  const ModelConfig& config = model->config();
  result.exchanges_s = 2 * static_cast<double>(config.num_layers) *
                           MedianOf(ranks, "sum", config.hidden_size, options.repeat) +
                       MedianOf(ranks, "gather", config.vocab_size / ranks.size(), options.repeat);
  result.predicted_s = result.one_rank_s / ranks.size() + result.exchanges_s;
  result.measured_s = StepSeconds(*model, options.tokens, threads);
  return result;
}

void Run(const Options& options) {
  ModelRanks* const ranks = Ranks::OfProcess().group();
  if (ranks == nullptr) {
    throw InvalidInput("bench comm",
                       "found one rank, expected several: mpirun -np 2 pmkvq bench "
                       "comm");
  }
  std::vector<Exchange> exchanges;
  for (int64_t bytes = 1 << 10; bytes <= int64_t{16} << 20; bytes *= 4) {
    Exchange& row = exchanges.emplace_back();
    row.bytes = bytes;
    // Enough of the short ones to see through noise, and no more than a second of the long ones.
    const int64_t repeat =
        std::max<int64_t>(5, options.repeat * 64 / std::max<int64_t>(64, bytes >> 12));
    row.sum_s = MedianOf(*ranks, "sum", bytes / 4, repeat);
    row.gather_s = MedianOf(*ranks, "gather", bytes / 4, repeat);
  }
  JsonWriter json;
  json.BeginObject();
  json.Key("ranks").Int(ranks->size());
  json.Key("transport").String(ranks->comm().transport());
  json.Key("exchanges").BeginArray();
  std::string text =
      fmt::format("{} ranks, {}\n{:>10}  {:>14} {:>10}  {:>14}\n", ranks->size(),
                  ranks->comm().transport(), "bytes", "SumInOrder us", "GB/s", "Gather us");
  for (const Exchange& row : exchanges) {
    const double speed = static_cast<double>(row.bytes) / row.sum_s / 1e9;
    json.BeginObject();
    json.Key("bytes").Int(row.bytes);
    json.Key("sum_us").Number(row.sum_s * 1e6);
    json.Key("sum_gb_per_s").Number(speed);
    json.Key("gather_us").Number(row.gather_s * 1e6);
    json.EndObject();
    text += fmt::format("{:>10}  {:>14.1f} {:>10.2f}  {:>14.1f}\n", FormatByteSize(row.bytes),
                        row.sum_s * 1e6, speed, row.gather_s * 1e6);
  }
  json.EndArray();
  if (!options.model.empty()) {
    const Prediction prediction = Predict(options, *ranks);
    json.Key("step").BeginObject();
    json.Key("one_rank_ms").Number(prediction.one_rank_s * 1e3);
    json.Key("exchanges_ms").Number(prediction.exchanges_s * 1e3);
    json.Key("predicted_ms").Number(prediction.predicted_s * 1e3);
    json.Key("measured_ms").Number(prediction.measured_s * 1e3);
    json.EndObject();
    text += fmt::format(
        "a token: one rank {:.3f} ms; {} ranks predicted {:.3f} ms (exchanges {:.3f}), measured "
        "{:.3f} ms\n",
        prediction.one_rank_s * 1e3, ranks->size(), prediction.predicted_s * 1e3,
        prediction.exchanges_s * 1e3, prediction.measured_s * 1e3);
  }
  json.EndObject();
  WriteJson(options.json, json.text());
  if (options.json != "-") Print(text);
}

}  // namespace

void RunCommTask(Communicator& comm, const std::string& arguments) {
  std::istringstream words(arguments);
  std::string what;
  int64_t floats = 0;
  int64_t repeat = 0;
  words >> what >> floats >> repeat;
  std::vector<float> values(static_cast<size_t>(floats), 1.0f);
  std::vector<float> all(what == "gather" ? values.size() * static_cast<size_t>(comm.size()) : 0);
  Measured().clear();
  for (int64_t i = 0; i < repeat; ++i) {
    comm.Barrier();
    const Clock::time_point start = Clock::now();
    if (what == "gather") {
      comm.Gather(values.data(), values.size() * sizeof(float), all.data());
    } else {
      comm.SumInOrder(values.data(), floats);
      std::fill(values.begin(), values.end(), 1.0f);  // Else they grow to infinity.
    }
    Measured().push_back(SecondsSince(start));
  }
}

void AddCommBench(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "comm", "exchanges between the ranks of mpirun; with --model a token's time, as predicted");
  NamesFile(command->add_option("--model", options->model,
                                "model folder or .gguf file whose tokens are predicted"),
            FileKind::kModel);
  command->add_option("--repeat", options->repeat, "exchanges of each size")
      ->transform(WholeNumber(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "with --model: tokens that are decoded")
      ->transform(WholeNumber(8, 1 << 16))
      ->capture_default_str();
  AddThreads(*command, options->threads);
  options->weights.RegisterWithRanks(*command);
  AddJson(*command, options->json, "write the result as JSON");
  AddExamples(*command, {"mpirun -np 2 pmkvq bench comm",
                         "mpirun -np 2 pmkvq bench comm --model models/longcot-10m --threads 1"});
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
