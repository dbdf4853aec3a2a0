#include "base/histogram.h"

#include <gtest/gtest.h>

namespace pollux {
namespace {

TEST(Histogram, IsEmptyAtFirst) {
  const Histogram histogram;
  EXPECT_EQ(histogram.quantile(0.5), 0u);
  EXPECT_EQ(histogram.count(), 0u);
}

TEST(Histogram, SmallValuesAreExact) {
  Histogram histogram;
  for (std::uint64_t value = 1; value <= 20; ++value) histogram.record(value);
  EXPECT_EQ(histogram.quantile(0.5), 10u);
  EXPECT_EQ(histogram.quantile(1.0), 20u);
}

TEST(Histogram, QuantileIsNeverBelowAndAtMostOneThirtySecondAboveTheTrueValue) {
  Histogram histogram;
  for (std::uint64_t value = 1; value <= 100'000; ++value) histogram.record(value);
  for (const double fraction : {0.01, 0.5, 0.9, 0.99}) {
    const double truth = fraction * 100'000;
    EXPECT_GE(static_cast<double>(histogram.quantile(fraction)), truth);
    EXPECT_LE(static_cast<double>(histogram.quantile(fraction)), truth * (1 + 1.0 / 32));
  }
}

TEST(Histogram, TellsTheMiddleTheTailAndTheLargestApart) {
  Histogram histogram;
  for (int i = 0; i < 980; ++i) histogram.record(7);
  for (int i = 0; i < 19; ++i) histogram.record(24);
  histogram.record(1'000'003);
  EXPECT_EQ(histogram.quantile(0.5), 7u);
  EXPECT_EQ(histogram.quantile(0.98), 7u);
  EXPECT_EQ(histogram.quantile(0.99), 24u);
  EXPECT_EQ(histogram.quantile(0.999), 24u);
  EXPECT_EQ(histogram.max(), 1'000'003u);  // exactly
  EXPECT_EQ(histogram.quantile(1.0), histogram.max());
  EXPECT_EQ(histogram.count(), 1000u);
  EXPECT_EQ(histogram.sum(), 980u * 7 + 19 * 24 + 1'000'003);
}

TEST(Histogram, HoldsTheLargestValue) {
  Histogram histogram;
  histogram.record(~std::uint64_t{0});
  EXPECT_EQ(histogram.quantile(0.5), ~std::uint64_t{0});
}

}  // namespace
}  // namespace pollux
