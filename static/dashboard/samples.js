// The samples of the last ten minutes, as this page has heard them, over reconnects and restarts.

const KEPT_S = 600;
const GAP_S = 2.5; // samples that are further apart are not joined by a line

export class History {
  constructor() {
    this.samples = [];
  }

  /** Takes samples in the order of their time; those that are known already come from a reconnect. */
  take(samples) {
    if (!samples.length) return;
    const first = samples[0].at;
    const earlier = this.samples.filter(({ at }) => at < first);
    const later = this.samples.filter(({ at }) => at > samples.at(-1).at);
    const all = [...earlier, ...samples, ...later];
    const oldest = all.at(-1).at - KEPT_S;
    this.samples = all.filter(({ at }) => at >= oldest);
  }

  get newest() {
    return this.samples.at(-1);
  }

  /** uPlot's columns: the times, then one of values for each of `reads`; null where a line breaks. */
  columns(reads) {
    const columns = [[], ...reads.map(() => [])];
    let before = null;
    for (const sample of this.samples) {
      if (before !== null && sample.at - before > GAP_S) {
        columns[0].push(before + 1);
        reads.forEach((_, index) => columns[index + 1].push(null));
      }
      columns[0].push(sample.at);
      reads.forEach((read, index) => columns[index + 1].push(read(sample) ?? null));
      before = sample.at;
    }
    return columns;
  }
}
