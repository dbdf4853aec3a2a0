#include "primary/page_batch.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <future>

namespace pollux::primary {
namespace {

using vmm::Gfn;

std::array<std::byte, kPageSize> page_of(unsigned char value) {
  std::array<std::byte, kPageSize> page;
  page.fill(std::byte{value});
  return page;
}

TEST(PageBatch, JoinsNeighboursAndLeavesZeroPagesOut) {
  PagePool pool(2 << 20);
  auto chunk = pool.try_acquire();
  for (const auto& [gfn, value] : std::vector<std::pair<std::uint64_t, unsigned char>>{
           {10, 1}, {11, 2}, {12, 0}, {13, 0}, {14, 3}, {20, 4}}) {
    chunk->append(Gfn{gfn}, page_of(value));
  }
  const auto batch = make_batch(std::move(chunk));
  EXPECT_EQ(batch->runs, (std::vector<protocol::PageRun>{
                             {{10}, 2, false}, {{12}, 2, true}, {{14}, 1, false}, {{20}, 1, false}}));
  EXPECT_EQ(batch->pages, 4u);
  EXPECT_EQ(batch->zero_pages, 2u);
  ASSERT_EQ(batch->body.size(), 2u) << "adjacent copies are one piece";
  EXPECT_EQ(batch->body[0].size(), 2 * kPageSize);
  EXPECT_EQ(batch->body[1][0], std::byte{3});
  EXPECT_EQ(batch->body[1][kPageSize], std::byte{4});
}

TEST(PageBatch, SplitsManyScatteredZeroRuns) {
  std::vector<Gfn> gfns;
  for (std::uint64_t i = 0; i < 3 * protocol::kMaxRunsPerMessage; ++i) gfns.push_back(Gfn{2 * i});
  std::uint64_t pages = 0;
  for (const auto& batch : make_zero_batches(gfns)) {
    EXPECT_LE(batch->runs.size(), protocol::kMaxRunsPerMessage);
    pages += batch->zero_pages;
  }
  EXPECT_EQ(pages, gfns.size());
}

TEST(PageBatch, FindsTheOneByteThatIsNotZero) {
  for (const std::size_t where : {std::size_t{0}, std::size_t{1}, kPageSize - 1}) {
    auto page = page_of(0);
    EXPECT_TRUE(is_zero(page));
    page[where] = std::byte{1};
    EXPECT_FALSE(is_zero(page));
  }
}

TEST(PagePool, IsBoundedAndLendsAgainWhatReturns) {
  PagePool pool(2 << 20);
  auto first = pool.try_acquire();
  auto second = pool.try_acquire();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(pool.try_acquire(), nullptr);
  auto waiting = std::async(std::launch::async, [&] { return pool.acquire(); });
  first.reset();
  EXPECT_NE(waiting.get(), nullptr);
}

TEST(PagePool, StoppingLetsAWaiterGoAndLendsNothingMore) {
  PagePool pool(2 << 20);
  auto first = pool.try_acquire();
  const auto second = pool.try_acquire();
  auto waiting = std::async(std::launch::async, [&] { return pool.acquire(); });
  EXPECT_EQ(waiting.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  pool.stop();
  EXPECT_EQ(waiting.get(), nullptr);
  first.reset();
  EXPECT_EQ(pool.try_acquire(), nullptr);
  EXPECT_EQ(pool.acquire(), nullptr);
}

TEST(PagePool, AFullChunkHoldsOneMessagesPages) {
  PagePool pool(2 << 20);
  auto chunk = pool.try_acquire();
  for (std::uint64_t i = 0; i < kPagesPerChunk; ++i) {
    ASSERT_FALSE(chunk->full());
    chunk->append(Gfn{i}, page_of(static_cast<unsigned char>(1 + i % 255)));
  }
  EXPECT_TRUE(chunk->full());
  EXPECT_EQ(chunk->page(kPagesPerChunk - 1)[0], std::byte{1});
  EXPECT_EQ(make_batch(std::move(chunk))->body_bytes(), protocol::kMaxBodyBytes);
}

}  // namespace
}  // namespace pollux::primary
