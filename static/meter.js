// Time to first token and tokens per second, as this reader sees them.

export class Meter {
  /** `sentAt` is null for a tape that was started elsewhere: its first token cannot be timed here. */
  constructor(sentAt = null) {
    this.sentAt = sentAt;
    this.firstAt = null;
    this.lastAt = null;
    this.inFirstFrame = 0;
    this.tokens = 0;
  }

  count(tokens, now) {
    if (this.firstAt === null) {
      this.firstAt = now;
      this.inFirstFrame = tokens;
    }
    this.lastAt = now;
    this.tokens += tokens;
  }

  /** Milliseconds, or null before the first token. */
  get ttft() {
    return this.sentAt === null || this.firstAt === null ? null : this.firstAt - this.sentAt;
  }

  /** Decode speed: the first frame starts the clock, so its tokens do not count. */
  get rate() {
    const seconds = (this.lastAt - this.firstAt) / 1000;
    return seconds > 0 ? (this.tokens - this.inFirstFrame) / seconds : null;
  }
}
