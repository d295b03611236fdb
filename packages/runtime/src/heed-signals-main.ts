/**
 * `node --import` of images: ends the process on SIGTERM or SIGINT from the first instant, before a program has set its own handlers, as while it
 * still loads. A process with the number 1, as in a container, would otherwise ignore them, and be killed only when its grace period is over.
 */
for (const [signal, number] of [
  ["SIGTERM", 15],
  ["SIGINT", 2],
] as const) {
  process.on(signal, () => {
    if (process.listenerCount(signal) === 1) process.exit(128 + number);
  });
}
