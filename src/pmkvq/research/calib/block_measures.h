// What the measuring steps take from one block's states, and the results that they make of it.
// Private to this folder.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "pmkvq/model/blocks/block.h"
#include "pmkvq/research/calib/calibration.h"

namespace pmkvq {

// Block after block [Hkv, D/2]: the largest |k| of pairs (i, i + D/2) over all tokens; of a latent
// block [r + dr]: those of the channels of c and k_r.
size_t NumMaxKeys(const KvGeometry& geometry);
void MeasureKeys(const KvGeometry& geometry, const BlockStates<float>& states,
                 std::span<double> values);
// As MeasureMaxKeys gives them. rope_in_pairs: MlaConfig's.
std::vector<Tensor> MaxKeysFrom(const KvGeometry& geometry, bool rope_in_pairs,
                                std::span<const double> values);
// Of MaxKeysFrom for this model.
bool RopeInPairs(const Model& model);
// Throws Unsupported where blocks have neither keys of one shape nor latents.
void CheckHasKeys(const KvGeometry& geometry);
// Throws Unsupported for a model of latent blocks on a device.
void CheckDevice(const Model& model);

// [K, V][16, 8, 4, 2 bits][L]: damage over the number of values; of a latent block that of c and
// k_r. States with gradients. Throws InvalidInput where one is not finite.
size_t NumDamages(int64_t num_layers);
void MeasureDamages(const KvGeometry& geometry, const BlockStates<float>& states, int num_threads,
                    std::span<double> values);
// `sums` over `num_samples`.
Sensitivity SensitivityFrom(int64_t num_layers, std::span<const double> sums, size_t num_samples);

}  // namespace pmkvq
