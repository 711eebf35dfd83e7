// SPDX-License-Identifier: Apache-2.0
// Where there is no libFuzzer: every file of the folders, then random changes of them for so many seconds.
//   replay FAILURE SECONDS SEED FOLDER...    what makes it fail is written to the file FAILURE
#include <fcntl.h>
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "change_bits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace {

using fuzz::Bytes;

constexpr unsigned kSecondsAnInput = 60;
const char* failure_path;
Bytes current;

void save() {
  const int file = open(failure_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file < 0 || write(file, current.data(), current.size()) < 0) std::perror(failure_path);
}

void save_and_stop(int signal) {
  save();
  _exit(128 + signal);
}

void run(const Bytes& input) {
  current = input;
  alarm(kSecondsAnInput);
  LLVMFuzzerTestOneInput(current.data(), current.size());
  alarm(0);
}

class Mutator {
 public:
  Mutator(const std::vector<Bytes>& corpus, uint64_t seed) : corpus_(corpus), random_(seed) {}

  Bytes next() {
    Bytes bytes = corpus_[below(corpus_.size())];
    for (size_t changes = 1 + below(6); changes > 0 && !bytes.empty(); --changes) change(bytes);
    return bytes;
  }

 private:
  size_t below(size_t end) { return static_cast<size_t>(random_() % end); }

  void change(Bytes& bytes) {
    const size_t at = below(bytes.size()), length = std::min(1 + below(below(8) == 0 ? 200 : 8), bytes.size() - at);
    const auto from = bytes.begin() + static_cast<ptrdiff_t>(at), to = from + static_cast<ptrdiff_t>(length);
    switch (below(9)) {
      case 0: bytes[at] ^= static_cast<uint8_t>(1u << below(8)); break;
      case 1: bytes[at] = static_cast<uint8_t>(below(256)); break;
      case 2: std::fill(from, to, static_cast<uint8_t>(below(2) * 255)); break;
      case 3: bytes.erase(from, to); break;
      case 4: {
        const Bytes copy(from, to);
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size())), copy.begin(), copy.end());
        break;
      }
      case 5: bytes.resize(at); break;
      case 6: {  // another stream goes on here
        const Bytes& other = corpus_[below(corpus_.size())];
        if (other.empty()) break;
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<ptrdiff_t>(below(other.size())), other.end());
        break;
      }
      default: fuzz::change_bits(bytes, random_);
    }
  }

  const std::vector<Bytes>& corpus_;
  std::mt19937_64 random_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  failure_path = arguments[1];
  const double seconds = std::atof(arguments[2]);
  std::vector<std::filesystem::path> files;
  for (int i = 4; i < count; ++i)
    for (const auto& entry : std::filesystem::directory_iterator(arguments[i]))
      if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::vector<Bytes> corpus;
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) return 2;
  __sanitizer_set_death_callback(save);
  std::signal(SIGABRT, save_and_stop);
  std::signal(SIGALRM, save_and_stop);

  for (const Bytes& bytes : corpus) run(bytes);
  Mutator mutator(corpus, std::strtoull(arguments[3], nullptr, 10));
  const auto begin = std::chrono::steady_clock::now();
  long runs = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < seconds) {
    run(mutator.next());
    ++runs;
  }
  std::printf("%zu files, %ld changed streams\n", corpus.size(), runs);
}
