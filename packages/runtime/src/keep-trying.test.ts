import { describe, expect, it } from "vitest";
import { PermanentError, UnavailableError } from "./errors.ts";
import { keepTrying } from "./keep-trying.ts";
import { createLog } from "./log.ts";

const log = createLog({ service: "test", level: "silent" });
/** Fails with these errors, one after the other, and then works. */
const failing = (...errors: Error[]) => {
  const calls = { count: 0 };
  const work = async (): Promise<string> => {
    const error = errors[calls.count++];
    if (error !== undefined) throw error;
    return "done";
  };
  return { work, calls };
};

describe("keepTrying", () => {
  it("repeats what may pass", async () => {
    const { work, calls } = failing(new UnavailableError("STORE_UNAVAILABLE", "away"), new Error("of any kind"));
    expect(await keepTrying("store it", work, { log })).toBe("done");
    expect(calls.count).toBe(3);
  });

  it.each([
    ["a PermanentError", new PermanentError("OBJECT_CORRUPT", "no")],
    ["what the file system says about a file", Object.assign(new Error("EACCES"), { syscall: "open", path: "/x" })],
  ])("never repeats %s", async (_, error) => {
    const { work, calls } = failing(error);
    await expect(keepTrying("read it", work, { log })).rejects.toBe(error);
    expect(calls.count).toBe(1);
  });

  it("loses patience with an unknown error, and never with a server that is away", async () => {
    const unknown = new Error("of any kind");
    await expect(keepTrying("store it", failing(unknown).work, { log, patienceMs: -1 })).rejects.toBe(unknown);
    const away = failing(new UnavailableError("STORE_FULL", "full"));
    expect(await keepTrying("store it", away.work, { log, patienceMs: -1 })).toBe("done");
  });

  it("gives up when its caller does, with the caller's reason and its own", async () => {
    const { work } = failing(new UnavailableError("STORE_FULL", "no room"));
    const givenUp = async () => ({ code: "PREEMPTED", message: "the attempt was asked to stop" });
    await expect(keepTrying("store it", work, { log, givenUp })).rejects.toMatchObject({
      code: "PREEMPTED",
      message: "the attempt was asked to stop, while it was to store it: no room",
    });
  });

  it(
    "tells that it waits for as long as it does: when several wait, the success of one does not end the waiting",
    { timeout: 30_000 },
    async () => {
      const told: (string | undefined)[] = [];
      const onWait = (reason: { code: string } | null) => void told.push(reason?.code);
      const until = { small: false, large: false };
      const store = (what: keyof typeof until) =>
        keepTrying(
          what,
          async () => {
            if (!until[what]) throw new UnavailableError("STORE_FULL", "the object store is full");
            return what;
          },
          { log, onWait },
        );
      const [small, large] = [store("small"), store("large")];
      await expect.poll(() => told.length, { timeout: 60_000 }).toBeGreaterThan(1);
      until.small = true;
      expect(await small).toBe("small");
      await expect.poll(() => told.slice(told.indexOf(undefined)), { timeout: 60_000 }).toContain("STORE_FULL");
      until.large = true;
      expect(await large).toBe("large");
      expect(told.at(-1)).toBeUndefined();
    },
  );
});
