// pmkvq bench: speeds against the ceilings of this machine. docs/performance.md explains the
// figures.
#include "pmkvq/research/bench/bench.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>

#include "bench_comm.h"
#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/research/bench/bench_cuda.h"
#include "pmkvq/research/bench/bench_model.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/tensor/device/device_info.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

// Options of all benchmarks, then those of some.
struct Options {
  BenchOptions bench;
  std::string attention = "accurate";
  std::string weights = "as-stored";
  std::string model;  // decode, prefill
  std::string json;
  std::string device = "cpu";  // attention, gemv, halve, sampling
  bool mixed = false;          // attention on CUDA
  std::string axis = "token";  // attention
  int threads = 0;

  bool per_matrix = false;                                    // gemv
  std::vector<WeightFormat> formats = {WeightFormat::kBF16};  // gemv
  int64_t tokens = 512;                                       // prefill
  int64_t chunk = 512;                                        // prefill
  int64_t budget_tokens = 2048;                               // halve
  int64_t vocab = 152064;                                     // sampling
  std::string kv;                                             // decode on CUDA
  EngineBenchOptions engine;
  CalibrationBenchOptions calibration;
};

class Command {
 public:
  Command(CLI::App& parent, const char* name, const std::string& text)
      : options_(std::make_shared<Options>()), command_(parent.add_subcommand(name, text)) {
    AddThreads(*command_, options_->threads);
    command_
        ->add_option("--repeat", options_->bench.repeat,
                     "rounds; each measures every row and every ceiling once")
        ->transform(WholeNumber(1, 1 << 20))
        ->capture_default_str();
    AddJson(*command_, options_->json, "write the result as JSON");
  }

  Options& options() { return *options_; }
  CLI::App& app() { return *command_; }

  void AddShape(const std::string& layers_text, const std::vector<std::string>& more_names = {}) {
    std::vector<std::string> names = ShapeNames();
    names.insert(names.end(), more_names.begin(), more_names.end());
    command_
        ->add_option("--shape", options_->bench.shape,
                     fmt::format("shape of the model: {}", fmt::join(names, ", ")))
        ->transform(OneOf(names).description(""))
        ->capture_default_str();
    command_->add_option("--layers", options_->bench.layers, "blocks " + layers_text)
        ->transform(WholeNumber(0, 1 << 16));
  }

  void AddDepths(std::vector<int64_t> defaults, const std::string& text) {
    options_->bench.depths = std::move(defaults);
    AddWholeNumbers(*command_, "--depth", options_->bench.depths, text, 0, kMostTokens);
  }

  void AddBits(std::vector<int> defaults) {
    options_->bench.bits = std::move(defaults);
    const auto read = [options = options_.get()](const std::vector<std::string>& texts) {
      options->bench.bits.clear();
      for (const std::string& text : texts) {
        const std::vector<int> widths = ParseWidths(text, "--bits");
        options->bench.bits.insert(options->bench.bits.end(), widths.begin(), widths.end());
      }
    };
    command_
        ->add_option_function<std::vector<std::string>>("--bits", read,
                                                        "widths of the stored pages, 16,8,4,2")
        ->type_name("INT,...")
        ->default_str(fmt::format("{}", fmt::join(options_->bench.bits, ",")));
  }

  void AddBatches(std::vector<int64_t> defaults, const std::string& text) {
    options_->bench.batches = std::move(defaults);
    AddWholeNumbers(*command_, "--batch", options_->bench.batches, text, 1, kMostBatch);
  }

  // Pages of keys and values of unlike widths, and groups of keys.
  void AddApart() {
    const auto read = [options = options_.get()](const std::vector<std::string>& texts) {
      options->bench.apart.clear();
      for (const std::string& text : texts) {
        for (const std::string& pair : SplitAtCommas(text)) {
          const size_t colon = pair.find(':');
          if (colon == std::string::npos) {
            throw CLI::ValidationError(
                "--apart", fmt::format("found '{}', expected the width of keys, a colon and that "
                                       "of values, such as 4:2",
                                       pair));
          }
          const std::vector<int> k = ParseWidths(pair.substr(0, colon), "--apart");
          const std::vector<int> v = ParseWidths(pair.substr(colon + 1), "--apart");
          options->bench.apart.push_back({k.at(0), v.at(0)});
        }
      }
    };
    command_
        ->add_option_function<std::vector<std::string>>(
            "--apart", read, "more rows: pages whose keys and values have widths of their own")
        ->type_name("K:V,...");
    command_->add_option("--axis", options_->axis, "what a group of keys below 16 bits is")
        ->transform(OneOf({"token", "channel"}))
        ->capture_default_str();
  }

  void AddAttention() {
    command_
        ->add_option("--attention", options_->attention, "how a new token attends to packed pages")
        ->transform(OneOf({"accurate", "fast"}))
        ->capture_default_str();
  }

  void AddWeights() {
    command_
        ->add_option("--weights", options_->weights,
                     "as-stored (bf16), or groups of 8 or 4 bits, made from it at the start")
        ->transform(OneOf(WeightModeNames()))
        ->capture_default_str();
  }

  void AddModel() {
    command_->add_option("--model", options_->model,
                         "a model folder or GGUF file in place of a shape, on the CPU, with all of "
                         "its blocks and vocabulary");
  }

  void AddFormats() {
    std::vector<std::string> names;
    for (const WeightLayout& layout : kWeightLayouts) names.emplace_back(layout.name);
    const auto read = [options = options_.get(), names](const std::vector<std::string>& texts) {
      options->formats.clear();
      for (const std::string& text : texts) {
        for (size_t begin = 0; begin <= text.size();) {
          const size_t end = std::min(text.find(',', begin), text.size());
          const std::string name = text.substr(begin, end - begin);
          const std::optional<WeightFormat> format = WeightFormatNamed(name);
          if (!format) {
            throw CLI::ValidationError("--weights", fmt::format("found '{}', expected some of {}",
                                                                name, fmt::join(names, ", ")));
          }
          options->formats.push_back(*format);
          begin = end + 1;
        }
      }
    };
    command_
        ->add_option_function<std::vector<std::string>>(
            "--weights", read,
            fmt::format("formats of the weights on the CPU, one or more with commas: {}",
                        fmt::join(names, ", ")))
        ->type_name("NAME,...")
        ->default_str("BF16");
  }

  void AddDevice() {
    command_->add_option("--device", options_->device, "cpu, cuda or cuda:N")
        ->check(CLI::Validator(
            [](const std::string& text) {
              return ParseDevice(text)
                         ? std::string()
                         : fmt::format("found {}, expected cpu, cuda or cuda:N", text);
            },
            ""))
        ->capture_default_str();
  }

  // Of a synthetic model on a device; on the CPU the output layer costs next to nothing.
  void AddVocab() {
    command_->add_option("--vocab", options_->vocab, "on CUDA: tokens of the vocabulary")
        ->transform(WholeNumber(50, 1 << 20))
        ->capture_default_str();
  }

  // Runs `measure` after parsing and shows its report.
  void OnRun(std::function<BenchReport(const Options&)> measure) {
    AddExamples(*command_, {fmt::format("pmkvq bench {}", command_->get_name()),
                            fmt::format("pmkvq bench {} --repeat 3 --threads 1 --json -",
                                        command_->get_name())});
    command_->callback([options = options_, measure = std::move(measure)] {
      ProgressBar progress;
      options->bench.num_threads = ResolveThreads(options->threads);
      options->bench.attention = ParseAttentionMode(options->attention);
      options->bench.keys_by_channel = options->axis == "channel";
      options->bench.weights = ParseWeightMode(options->weights);
      options->bench.progress = &progress;
      options->bench.cancel = InterruptFlag();
      const BenchReport report = measure(*options);
      WriteJson(options->json, ToJson(report));
      if (options->json != "-") Print(FormatReport(report));
    });
  }

 private:
  std::shared_ptr<Options> options_;
  CLI::App* command_;
};

constexpr char kLayersTwo[] =
    "(0: 2, on CUDA all); two blocks of qwen2-7b take 0.9 GiB of memory, and the cache comes on "
    "top";

void AddAttentionBench(CLI::App& bench) {
  Command command(bench, "attention", "one token's attention over a cache, from memory");
  command.AddShape("(0: 1)", LatentShapeNames());
  command.AddDepths({4096, 16384, 32768}, "stored tokens, one or more");
  command.AddBits({16, 8, 4, 2});
  command.AddApart();
  command.AddAttention();
  command.AddDevice();
  command.AddBatches({1}, "sequences at a time, on CUDA, one or more");
  command.app().add_flag("--mixed", command.options().mixed,
                         "on CUDA: a row for pages of mixed widths, too");
  command.OnRun([](const Options& options) {
    const DeviceId device = *ParseDevice(options.device);
    if (device.device != Device::kCpu) {
      return BenchCudaAttention(options.bench, device, options.mixed);
    }
    if (options.mixed || options.bench.batches != std::vector<int64_t>{1}) {
      throw InvalidInput("bench attention",
                         "found --batch or --mixed on the CPU, which attends for "
                         "one sequence here; expected --device cuda with them");
    }
    return BenchAttention(options.bench);
  });
}

void AddGemvBench(CLI::App& bench) {
  Command command(bench, "gemv",
                  "weight products of a block with few rows; on CUDA bf16, q8 and blocks");
  command.AddShape("(0: as many as hold 256 MiB of weights)");
  command.AddBatches({1, 2, 4, 8, 16}, "rows at a time, one or more");
  command.AddFormats();
  command.app().add_flag("--per-matrix", command.options().per_matrix,
                         "a line for each matrix, too");
  command.AddDevice();
  command.OnRun([](const Options& options) {
    const DeviceId device = *ParseDevice(options.device);
    if (device.device != Device::kCpu) {
      return BenchCudaGemv(options.bench, device, options.per_matrix);
    }
    return BenchGemv(options.bench, options.formats, options.per_matrix);
  });
}

void CheckNoModel(const Options& options) {
  if (options.model.empty()) return;
  throw InvalidInput("--model", "found it with --device cuda, expected it with --device cpu");
}

void AddPrefillBench(CLI::App& bench) {
  Command command(bench, "prefill", "prefill of a synthetic model, against OpenBLAS");
  command.AddShape(kLayersTwo);
  command.AddDepths({0}, "tokens stored before, one or more");
  command.AddBits({16});
  command.AddAttention();
  command.AddWeights();
  command.AddModel();
  command.options().bench.batches = {1};
  command.app()
      .add_option("--tokens", command.options().tokens, "tokens to prefill")
      ->transform(WholeNumber(2, 65536))
      ->capture_default_str();
  command.app()
      .add_option("--chunk", command.options().chunk, "tokens per forward pass")
      ->transform(WholeNumber(2, 65536))
      ->capture_default_str();
  command.AddDevice();
  command.AddVocab();
  command.OnRun([](const Options& options) {
    const DeviceId device = *ParseDevice(options.device);
    if (device.device != Device::kCpu) {
      CheckNoModel(options);
      return BenchCudaPrefill(options.bench, device, options.tokens, options.chunk, options.vocab);
    }
    if (!options.model.empty()) {
      return BenchPrefillOf(LoadModel(options.model, options.bench.weights, options.threads),
                            options.bench, options.tokens, options.chunk);
    }
    return BenchPrefill(options.bench, options.tokens, options.chunk);
  });
}

void AddDecodeBench(CLI::App& bench) {
  Command command(bench, "decode", "decoding steps of a synthetic model over a synthetic cache");
  command.AddShape(fmt::format("{}; two blocks with experts take up to 2.3 GiB", kLayersTwo),
                   ExpertShapeNames());
  command.AddDepths({0, 4096, 16384, 32768}, "stored tokens, one or more");
  command.AddBits({16, 8, 4, 2});
  command.AddBatches({1}, "sequences at a time, one or more");
  command.AddAttention();
  command.AddWeights();
  command.AddModel();
  command.AddDevice();
  command.AddVocab();
  command.app().add_option("--kv", command.options().kv,
                           "on CUDA: a published method, whose cache stays on the host (kivi)");
  command.OnRun([](const Options& options) {
    const DeviceId device = *ParseDevice(options.device);
    if (device.device != Device::kCpu) {
      CheckNoModel(options);
      if (options.kv.empty()) return BenchCudaDecode(options.bench, device, options.vocab);
      return BenchCudaMethodDecode(options.bench, device, options.vocab, options.kv);
    }
    if (!options.kv.empty()) {
      throw InvalidInput("--kv", "found it with --device cpu, expected it with --device cuda");
    }
    if (!options.model.empty()) {
      return BenchDecodeOf(LoadModel(options.model, options.bench.weights, options.threads),
                           options.bench);
    }
    return BenchDecode(options.bench);
  });
}

void AddEngineBench(CLI::App& bench) {
  Command command(bench, "engine", "scheduling beside a queue, and tokens beside a long prompt");
  command.AddShape(kLayersTwo);
  command.AddBatches({8, 64}, "running requests, one or more");
  command.AddWeights();
  Options& options = command.options();
  options.bench.shape = "qwen2-1.5b";
  options.bench.repeat = 3;
  const auto add = [&](const char* name, int64_t& value, const char* text, int64_t least) {
    command.app()
        .add_option(name, value, text)
        ->transform(WholeNumber(least, 65536))
        ->capture_default_str();
  };
  add("--waiting", options.engine.waiting, "requests in the queue", 1);
  add("--prompt", options.engine.prompt_tokens, "tokens of the prompt beside them", 2);
  add("--chunk", options.engine.chunk, "prompt tokens per forward pass", 1);
  command.app()
      .add_option("--prefill-share", options.engine.prefill_share,
                  "share of a step's time for prompts beside decoding, in (0, 1]")
      ->transform(DecimalNumber(0.001, 1))
      ->capture_default_str();
  command.OnRun([](const Options& given) { return BenchEngine(given.bench, given.engine); });
}

void AddSamplingBench(CLI::App& bench) {
  Command command(bench, "sampling", "drawing the tokens of a step, by sampling mode");
  command.AddBatches({1, 32}, "rows at a time, one or more");
  command.app()
      .add_option("--vocab", command.options().vocab, "tokens of the vocabulary")
      ->transform(WholeNumber(50, 1 << 24))
      ->capture_default_str();
  command.AddDevice();
  command.OnRun([](const Options& options) {
    const DeviceId device = *ParseDevice(options.device);
    if (device.device != Device::kCpu) {
      return BenchCudaSampling(options.bench, device, options.vocab);
    }
    return BenchSampling(options.bench, options.vocab);
  });
}

void AddHalveBench(CLI::App& bench) {
  Command command(bench, "halve", "halving of stored pages, and how long a token waits for it");
  command.AddShape("(0: 4 for the speed, all of the shape for the wait)");
  command.AddDepths({16384}, "stored tokens whose pages are halved");
  command.app().get_option("--depth")->expected(1)->transform(WholeNumber(0, kMostTokens));
  command.app()
      .add_option("--budget-tokens", command.options().budget_tokens,
                  "the wait: tokens that the budget holds at 16 bits")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str();
  command.AddDevice();
  command.OnRun([](const Options& options) {
    const DeviceId device = *ParseDevice(options.device);
    if (device.device != Device::kCpu) return BenchCudaHalving(options.bench, device);
    return BenchHalving(options.bench, options.budget_tokens);
  });
}

void AddCalibrateBench(CLI::App& bench) {
  Command command(bench, "calibrate", "the steps of calibration of a model, one by one");
  Options& options = command.options();
  options.bench.repeat = 1;
  options.bench.shape.clear();
  auto* model = NamesFile(command.app().add_option("--model", options.calibration.model,
                                                   "model folder or .gguf file (default: "
                                                   "models/longcot-10m)"),
                          FileKind::kModel);
  command.app()
      .add_option("--shape", options.bench.shape,
                  fmt::format("in place of a model: made-up weights of that shape, and random "
                              "tokens: {}",
                              fmt::join(ShapeNames(), ", ")))
      ->transform(OneOf(ShapeNames()).description(""))
      ->excludes(model);
  command.app()
      .add_option("--layers", options.bench.layers, "with --shape: blocks (0: all of the shape)")
      ->transform(WholeNumber(0, 1 << 16));
  command.app()
      .add_option("--vocab", options.vocab, "with --shape: tokens of the vocabulary")
      ->transform(WholeNumber(50, 1 << 20))
      ->capture_default_str();
  command.AddDevice();
  NamesFile(command.app().add_option("--dataset", options.calibration.dataset,
                                     "texts (default: calibration.jsonl in the model's folder)"),
            FileKind::kInput);
  command.app()
      .add_option("--n-samples", options.calibration.num_samples, "samples")
      ->transform(WholeNumber(1))
      ->capture_default_str();
  command.app()
      .add_option("--seq-len", options.calibration.seq_len, "tokens per sample")
      ->transform(WholeNumber(2, 1 << 20))
      ->capture_default_str();
  command.OnRun([](const Options& given) {
    CalibrationBenchOptions calibration = given.calibration;
    calibration.device = *ParseDevice(given.device);
    calibration.vocab_size = given.vocab;
    if (given.bench.shape.empty() && calibration.model.empty()) {
      calibration.model = "models/longcot-10m";
    }
    return BenchCalibration(given.bench, calibration);
  });
}

}  // namespace

void AddBench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand(
      "bench", "speed of kernels and of whole steps, against this machine's measured ceilings");
  bench->require_subcommand(1);
  AddExamples(*bench, {"pmkvq bench attention --depth 4096,16384 --bits 16,4",
                       "pmkvq bench decode --shape qwen2-7b --attention fast --json -"});
  AddAttentionBench(*bench);
  AddGemvBench(*bench);
  AddPrefillBench(*bench);
  AddDecodeBench(*bench);
  AddEngineBench(*bench);
  AddSamplingBench(*bench);
  AddHalveBench(*bench);
  AddCalibrateBench(*bench);
  AddCommBench(*bench);
}

}  // namespace pmkvq::cli
