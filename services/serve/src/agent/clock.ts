/** Time as the agent's units see it: a test gives them a clock of its own. */
export interface Clock {
  /** Milliseconds since the epoch, which only grow: a step of the machine's clock does not change what is being waited for. */
  now(): number;
  /** Calls `ring` once, after this many milliseconds. The returned function calls it off. */
  after(ms: number, ring: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => performance.timeOrigin + performance.now(),
  after(ms, ring) {
    const timer = setTimeout(ring, ms);
    return () => clearTimeout(timer);
  },
};
