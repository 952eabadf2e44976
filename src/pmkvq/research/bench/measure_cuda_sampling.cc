// Drawing the tokens of a batch on a CUDA device.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/sampling/device_sampler.h"
#include "pmkvq/research/bench/bench_cuda.h"
#include "pmkvq/research/bench/cuda_memory.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/sampling_rows.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

constexpr int kLaunches = 20;

struct Case {
  std::string mode;
  int64_t rows = 1;
  Measurements microseconds = {};
};

// Draws as a step makes them, each row with its own number.
std::vector<DeviceDraw> Draws(const SamplingParams& params, int64_t rows) {
  Random random(3);
  std::vector<DeviceDraw> draws;
  for (int64_t row = 0; row < rows; ++row) {
    draws.push_back({.temperature = params.temperature,
                     .top_k = params.top_k,
                     .top_p = params.top_p,
                     .min_p = params.min_p,
                     .uniform = random.Uniform(),
                     .active = 1});
  }
  return draws;
}

}  // namespace

BenchReport BenchCudaSampling(const BenchOptions& options, DeviceId device, int64_t vocab_size) {
  internal::CheckOptions(options);
  PMKVQ_CHECK(vocab_size >= internal::kPeaks);
  if (vocab_size > DeviceSampler::kMostVocabulary) {
    throw InvalidInput("bench sampling",
                       fmt::format("--vocab: found {}, expected at most {} on a device", vocab_size,
                                   DeviceSampler::kMostVocabulary));
  }
  const DeviceInfo info = Query(device);
  Stream stream(device);
  std::vector<Case> cases;
  for (const int64_t rows : options.batches) {
    DeviceSampler sampler(device, vocab_size, rows);
    const Buffer out(device, static_cast<size_t>(rows) * sizeof(DeviceDrawn));
    const auto upload = [&](bool flat) {
      return internal::UploadValues(stream, internal::RandomLogits(rows, vocab_size, flat));
    };
    const std::unique_ptr<Buffer> logits[] = {upload(false), upload(true)};
    for (const internal::SamplingMode& mode : internal::kSamplingModes) {
      // Rules and log-probabilities are the host's.
      if (mode.has_penalties || mode.num_logprobs >= 0) continue;
      ThrowIfCancelled(options.cancel, "bench");
      const auto draws = internal::UploadValues(stream, Draws(mode.params, rows));
      CapturedWork work(stream, [&] {
        for (int i = 0; i < kLaunches; ++i) {
          sampler.Launch(reinterpret_cast<const float*>(logits[mode.flat ? 1 : 0]->data()), rows,
                         reinterpret_cast<const DeviceDraw*>(draws->data()),
                         reinterpret_cast<DeviceDrawn*>(out.data()), stream);
        }
      });
      Case item{.mode = mode.name, .rows = rows};
      for (int round = -2; round < options.repeat; ++round) {
        const double us = internal::TimeOnStream(stream, [&] { work.Launch(stream); });
        if (round >= 0) item.microseconds.Add(us / kLaunches);
      }
      cases.push_back(std::move(item));
    }
  }

  BenchReport report;
  report.facts.Add("bench", std::string("sampling"));
  report.facts.Add("device", info.name, "device");
  report.facts.Add("repeat", int64_t{options.repeat});
  report.facts.Add("vocab", vocab_size, "vocabulary");
  BenchTable table{"rows", "drawing the tokens of a batch", {}};
  for (const Case& item : cases) {
    const Spread us = item.microseconds.ToSpread();
    BenchFields row;
    row.Add("mode", item.mode, "mode");
    row.Add("batch", item.rows, "batch");
    row.AddSpread("us", us, "us a batch", 1);
    row.Add("gb_per_s",
            static_cast<double>(item.rows * vocab_size) * sizeof(float) / us.median * 1e-3,
            "GB/s of logits", 0);
    table.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "logits of up to some 90 rows stay in the second-level cache, as in a step");
  return report;
}

}  // namespace pmkvq
