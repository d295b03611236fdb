import type { StoredMsg } from "@nats-io/jetstream";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { wholeAnswer } from "./read-rounds.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** An answer as the client reads it: after its last message it waits for more, until it is stopped. */
function answer(messages: number, everyMs: number, isWhole: boolean) {
  const stopped = Promise.withResolvers<never>();
  async function* read(): AsyncGenerator<StoredMsg> {
    for (let seq = 1; seq <= messages; seq++) {
      await new Promise((resolve) => setTimeout(resolve, everyMs));
      yield { seq } as StoredMsg;
    }
    if (!isWhole) await stopped.promise;
  }
  return Object.assign(read(), { stop: (error: Error) => stopped.reject(error) });
}

it("gives a whole answer, however long it takes between two messages that come", async () => {
  const reading = wholeAnswer(Promise.resolve(answer(20, 4000, true)), "KV_runs");
  await vi.advanceTimersByTimeAsync(20 * 4000);
  expect((await reading).map(({ seq }) => seq)).toEqual(Array.from({ length: 20 }, (_, n) => n + 1));
  expect(vi.getTimerCount()).toBe(0);
});

it("throws where the rest of an answer never comes, as when its connection was lost", async () => {
  const reading = wholeAnswer(Promise.resolve(answer(3, 10, false)), "KV_runs");
  const failed = reading.catch((error: unknown) => error);
  await vi.advanceTimersByTimeAsync(15_000);
  expect(await failed).toMatchObject({ code: "BUS_UNAVAILABLE", message: expect.stringContaining("KV_runs") as string });
  expect(vi.getTimerCount()).toBe(0);
});

it("keeps what came before the server did not find the next one", async () => {
  async function* read(): AsyncGenerator<StoredMsg> {
    yield { seq: 1 } as StoredMsg;
    throw new Error("message not found");
  }
  expect(await wholeAnswer(Promise.resolve(Object.assign(read(), { stop() {} })), "KV_runs")).toEqual([{ seq: 1 }]);
});
