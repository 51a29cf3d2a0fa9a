// Memory for one step's intermediates: handed out in order, taken back all at once, kept for the next step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace tw {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { release(); }

    // Room for `count` numbers on cache lines of its own; holds whatever was there. Throws std::bad_alloc.
    template <typename T>
    T* take(int64_t count) {
        const size_t bytes = rounded(size_t(count) * sizeof(T));
        while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].size) ++current_, used_ = 0;
        if (current_ == blocks_.size()) add(bytes);
        void* place = blocks_[current_].memory + used_;
        used_ += bytes;
        return static_cast<T*>(place);
    }

    // What is taken after a mark is given back by `rewind` to it.
    struct Mark {
        size_t block, used;
    };
    Mark mark() const { return {current_, used_}; }
    void rewind(Mark mark) { current_ = mark.block, used_ = mark.used; }

    // Gives everything back; pieces that were added one by one become one, so a steady state allocates nothing.
    void reset() {
        current_ = used_ = 0;
        if (blocks_.size() < 2) return;
        size_t total = 0;
        for (const Block& block : blocks_) total += block.size;
        release();
        add(total);
    }

private:
    static constexpr size_t kLine = 64;
    struct Block {
        char* memory;
        size_t size;
    };

    static size_t rounded(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

    void add(size_t bytes) {
        const size_t size = bytes < kSmallest ? kSmallest : bytes;
        void* memory = std::aligned_alloc(kLine, size);
        if (!memory) throw std::bad_alloc();
        blocks_.push_back({static_cast<char*>(memory), size});
    }

    void release() {
        for (Block& block : blocks_) std::free(block.memory);
        blocks_.clear();
    }

    static constexpr size_t kSmallest = 1 << 20;
    std::vector<Block> blocks_;
    size_t current_ = 0, used_ = 0;
};

}  // namespace tw
