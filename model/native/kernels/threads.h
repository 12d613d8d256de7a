// A team of threads that walks through the phases of one step together.
//
// A step has hundreds of phases of some ten microseconds each, so waiting must cost next to nothing
// while everyone is awake (spin), little while the processor is wanted elsewhere (yield), and
// nothing between steps (sleep). OpenMP offers one of the three for the whole program.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace tickertape {

class Team {
  public:
    explicit Team(int size, int phases) : size_(size), tickets_(phases) {
        for (int member = 1; member < size; ++member)
            threads_.emplace_back([this, member] { work(member); });
    }

    ~Team() {
        leaving_ = true;
        start_.fetch_add(1, std::memory_order_release);
        start_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // Run `job(member)` on every member, the caller being member 0; returns when all are done.
    void run(const std::function<void(int)>& job) {
        for (Ticket& ticket : tickets_) ticket.next.store(0, std::memory_order_relaxed);
        job_ = &job;
        start_.fetch_add(1, std::memory_order_release);
        start_.notify_all();
        job(0);
        barrier();
    }

    // Wait until every member has come this far.
    void barrier() {
        if (size_ == 1) return;
        const uint32_t epoch = epoch_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            epoch_.store(epoch + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; epoch_.load(std::memory_order_acquire) == epoch; ++spins)
            pause_or_yield(spins);
    }

    // The next piece of work of a phase, for whichever member asks first: a member that lost its
    // processor for a while holds up no more than the piece it has in hand.
    int take(int phase) { return tickets_[phase].next.fetch_add(1, std::memory_order_relaxed); }

  private:
    static constexpr int kSpinsBeforeYield = 200;   // some 10 us
    static constexpr int kSpinsBeforeSleep = 2000;  // some 100 us: the gap between two busy steps

    struct alignas(64) Ticket {
        std::atomic<int> next{0};
        Ticket() = default;
    };

    static void pause_or_yield(int spins) {
        if (spins < kSpinsBeforeYield)
            _mm_pause();
        else
            sched_yield();
    }

    void work(int member) {
        uint32_t seen = 0;
        while (true) {
            wait_for_start(seen);
            seen = start_.load(std::memory_order_acquire);
            if (leaving_) return;
            (*job_)(member);
            barrier();
        }
    }

    void wait_for_start(uint32_t seen) {
        for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
            if (start_.load(std::memory_order_acquire) != seen) return;
            pause_or_yield(spins);
        }
        start_.wait(seen, std::memory_order_acquire);
    }

    const int size_;
    std::vector<Ticket> tickets_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* job_ = nullptr;
    std::atomic<bool> leaving_{false};
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
};

}  // namespace tickertape
