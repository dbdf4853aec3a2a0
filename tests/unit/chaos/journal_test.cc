#include "chaos/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/guests/lockstep/kv_protocol.h"

namespace pollux::chaos {
namespace {

using guests::KvJournalRecord;
using guests::KvOperation;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::size_t kSectors = 8;

Operation put(std::uint64_t sequence, bool answered = true) {
  Operation operation;
  operation.client = 1;
  operation.sequence = sequence;
  operation.kind = OperationKind::kPut;
  operation.key = "k";
  operation.argument = "value " + std::to_string(sequence);
  if (answered) operation.returned = Moment(1);
  return operation;
}

// A disk on which the server wrote these one after the other.
std::string disk(const History& history) {
  std::string image(kSectors * sizeof(KvJournalRecord), '\x5a');
  std::uint64_t number = 0;
  for (const Operation& operation : history) {
    KvJournalRecord record{};
    record.magic = guests::kKvJournalMagic;
    record.operation = KvOperation::kPut;
    record.number = ++number;
    record.client = operation.client;
    record.sequence = operation.sequence;
    record.key_bytes = static_cast<std::uint8_t>(operation.key.size());
    record.value_bytes = static_cast<std::uint16_t>(operation.argument.size());
    std::memcpy(record.key, operation.key.data(), operation.key.size());
    std::memcpy(record.value, operation.argument.data(), operation.argument.size());
    record.hash = guests::kv_hash(reinterpret_cast<const std::uint8_t*>(&record), offsetof(KvJournalRecord, hash));
    std::memcpy(image.data() + (number - 1) % kSectors * sizeof record, &record, sizeof record);
  }
  return image;
}

History puts(std::uint64_t count) {
  History history;
  for (std::uint64_t sequence = 1; sequence <= count; ++sequence) history.push_back(put(sequence));
  return history;
}

TEST(JournalCheck, AcceptsWhatWasAcknowledged) {
  EXPECT_THAT(check_journal({}, disk({})), IsEmpty());
  EXPECT_THAT(check_journal(puts(5), disk(puts(5))), IsEmpty());
  EXPECT_THAT(check_journal(puts(30), disk(puts(30))), IsEmpty());
}

TEST(JournalCheck, AcceptsWhatWasCarriedOutWithoutAnAnswer) {
  History history = puts(4);
  history.push_back(put(5, false));
  EXPECT_THAT(check_journal(history, disk(puts(4))), IsEmpty());
  EXPECT_THAT(check_journal(history, disk(puts(5))), IsEmpty());
}

TEST(JournalCheck, FindsALostWrite) {
  EXPECT_THAT(check_journal(puts(5), disk(puts(4))), ElementsAre(HasSubstr("not in the journal: client 1 #5 put k")));
  EXPECT_THAT(check_journal(puts(21), disk(puts(20))), ElementsAre(HasSubstr("not in the journal: client 1 #21 put k")));
}

TEST(JournalCheck, FindsAFlippedBit) {
  std::string image = disk(puts(5));
  image[2 * sizeof(KvJournalRecord) + 100] ^= 1;
  EXPECT_THAT(check_journal(puts(5), image),
              ElementsAre("record 3 of 5 is missing or damaged", HasSubstr("not in the journal: client 1 #3")));
}

TEST(JournalCheck, FindsAnotherValue) {
  History told = puts(5);
  told[1].argument = "something else";
  EXPECT_THAT(check_journal(told, disk(puts(5))), ElementsAre(HasSubstr("record 2 says k = \"value 2\"")));
}

TEST(JournalCheck, OfACrashLacksOnlyWhatNobodyWasTold) {
  std::string image = disk(puts(30));  // of 8 sectors: 23 to 30
  image[(28 - 1) % kSectors * sizeof(KvJournalRecord) + 100] ^= 1;
  History told = puts(27);
  EXPECT_THAT(check_journal(told, image, true), IsEmpty());
  EXPECT_THAT(check_journal(told, image), ElementsAre("record 28 of 30 is missing or damaged"));
  told.push_back(put(28));
  EXPECT_THAT(check_journal(told, image, true), ElementsAre(HasSubstr("not in the journal: client 1 #28")));
}

TEST(JournalCheck, FindsAWriteThatWasCarriedOutTwice) {
  History twice = puts(3);
  twice.push_back(put(3));
  EXPECT_THAT(check_journal(puts(3), disk(twice)), ElementsAre("client 1 #3 is in records 3 and 4"));
}

}  // namespace
}  // namespace pollux::chaos
