#include "pmkvq/engine/request_queue.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

namespace pmkvq {
namespace {

std::unique_ptr<Task> MakeTask(RequestId id, int64_t session = -1) {
  Request request;
  request.prompt_ids = {1};
  request.session = session;
  return std::make_unique<Task>(id, std::move(request), nullptr);
}

RequestId IdOf(const std::unique_ptr<Task>& task) { return task == nullptr ? -1 : task->id; }

TEST(RequestQueueTest, OldestFirst) {
  RequestQueue queue;
  EXPECT_EQ(queue.Pop(), nullptr);
  for (const RequestId id : {1, 2, 3}) queue.Push(MakeTask(id));
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_EQ(IdOf(queue.Pop()), 1);
  EXPECT_EQ(IdOf(queue.Take(3)), 3);
  EXPECT_EQ(queue.Take(3), nullptr);
  EXPECT_EQ(IdOf(queue.Pop()), 2);
  EXPECT_TRUE(queue.empty());
}

TEST(RequestQueueTest, ARequestWaitsForItsSession) {
  RequestQueue queue;
  queue.Push(MakeTask(1, 7));
  queue.Push(MakeTask(2, 7));
  queue.Push(MakeTask(3, 7));
  queue.Push(MakeTask(4));
  EXPECT_EQ(IdOf(queue.Pop()), 1);
  EXPECT_EQ(IdOf(queue.Pop()), 4);
  EXPECT_EQ(queue.Pop(), nullptr);
  EXPECT_EQ(queue.size(), 2u);
  queue.FreeSession(7);
  queue.Push(MakeTask(5));
  EXPECT_EQ(IdOf(queue.Pop()), 2) << "at its old place";
  EXPECT_EQ(IdOf(queue.Pop()), 5);
  EXPECT_EQ(IdOf(queue.Take(3)), 3);
  EXPECT_TRUE(queue.empty());
}

TEST(RequestQueueTest, PutBackFreesTheSession) {
  RequestQueue queue;
  queue.Push(MakeTask(1, 7));
  queue.Push(MakeTask(2));
  queue.PutBack(queue.Pop());
  EXPECT_EQ(IdOf(queue.Pop()), 1);
  EXPECT_EQ(IdOf(queue.TakeAny()), 2);
  EXPECT_EQ(queue.TakeAny(), nullptr);
}

// Against a list that is walked.
RC_GTEST_PROP(RequestQueueTest, BehavesAsAList, ()) {
  RequestQueue queue;
  std::vector<std::pair<RequestId, int64_t>> list;
  std::map<int64_t, RequestId> busy;
  RequestId next = 1;
  const auto steps = *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 100));
  for (const int step : steps) {
    const int64_t session = step % 4 - 1;
    if (step < 40) {
      queue.Push(MakeTask(next, session));
      list.emplace_back(next++, session);
    } else if (step < 70) {
      std::optional<RequestId> expected;
      for (auto it = list.begin(); it != list.end(); ++it) {
        if (it->second >= 0 && busy.contains(it->second)) continue;
        expected = it->first;
        if (it->second >= 0) busy[it->second] = it->first;
        list.erase(it);
        break;
      }
      RC_ASSERT(IdOf(queue.Pop()) == expected.value_or(-1));
    } else if (step < 85) {
      busy.erase(session);
      queue.FreeSession(session);
    } else if (!list.empty()) {
      const auto taken = list.begin() + step % std::ssize(list);
      RC_ASSERT(IdOf(queue.Take(taken->first)) == taken->first);
      list.erase(taken);
    }
    RC_ASSERT(queue.size() == list.size());
  }
}

}  // namespace
}  // namespace pmkvq
