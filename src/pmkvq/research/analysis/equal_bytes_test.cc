#include "pmkvq/research/analysis/equal_bytes.h"

#include <gtest/gtest.h>

#include "pmkvq/kv/plan.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

class EqualBytesTest : public ::testing::Test {
 protected:
  EqualBytes Caches(const KvOptions& common, bool few = false) const {
    return CachesAtEqualBytes(common, Requirements(), few);
  }
  KvRequirements Requirements() const {
    return {model_->kv_geometry(), 1, 1000, 1, &model_->rope(), &model_->checkpoint()};
  }
  int64_t BytesOf(const std::string& spec) const {
    KvOptions options;
    options.spec = spec;
    return ResolveKvBudget(options, Requirements()).total_bytes();
  }
  // "static-4 kivi pm-kvq"; checks that each fits the bytes that all have.
  std::string Specs(const EqualBytes& equal) const {
    std::string specs;
    for (const KvOptions& cache : equal.caches) {
      EXPECT_EQ(cache.budget_bytes, equal.budget_bytes);
      EXPECT_TRUE(ResolveKvBudget(cache, Requirements()).Holds(1000)) << cache.spec;
      specs += (specs.empty() ? "" : " ") + cache.spec;
    }
    return specs;
  }

  std::shared_ptr<const Model> model_ = testing_support::LoadTinyLlama();
};

TEST_F(EqualBytesTest, WithoutABudgetTheLargestOfTheNarrowest) {
  const EqualBytes equal = Caches({});
  EXPECT_EQ(equal.budget_bytes,
            std::max({BytesOf("static-2"), BytesOf("kivi"), BytesOf("rtn:bits=2")}));
  EXPECT_EQ(equal.caches.size(), 4u);
  EXPECT_EQ(equal.caches.back().spec, "pm-kvq");
  Specs(equal);
  EXPECT_EQ(Specs(Caches({}, true)), "static-2 pm-kvq");
}

TEST_F(EqualBytesTest, TheWidestThatFitsABudget) {
  KvOptions common;
  common.budget_bytes = BytesOf("static-8");
  EXPECT_EQ(Specs(Caches(common)), "static-8 kivi:bits=4 rtn:bits=8 pm-kvq");
  common.budget_bytes -= 1;
  EXPECT_TRUE(Specs(Caches(common)).starts_with("static-4 ")) << Specs(Caches(common));
}

TEST_F(EqualBytesTest, APlanBringsItsBytes) {
  auto plan = std::make_shared<Plan>();
  plan->model_identity = model_->checkpoint().Identity();
  plan->geometry = model_->kv_geometry();
  plan->budget_bytes = {90000, 70000};
  KvOptions common;
  common.plan = plan;
  EXPECT_EQ(Caches(common).budget_bytes, 160000);
}

}  // namespace
}  // namespace pmkvq
