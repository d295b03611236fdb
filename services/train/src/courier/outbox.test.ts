import { createLog, UnavailableError } from "@loraline/runtime";
import { expect, it } from "vitest";
import { patiently } from "./outbox.ts";

it(
  "says that it waits for as long as it does: of several that wait, another one's success is no end of it",
  { timeout: 30_000 },
  async () => {
    const log = createLog({ service: "train", level: "silent" });
    const told: (string | undefined)[] = [];
    const onWait = (reason: { code: string } | null) => void told.push(reason?.code);
    const until = { small: false, large: false };
    const store = (what: keyof typeof until) =>
      patiently(
        what,
        async () => {
          if (!until[what]) throw new UnavailableError("STORE_FULL", "the object store is full");
          return what;
        },
        { log, onWait },
      );
    const [small, large] = [store("small"), store("large")];
    await expect.poll(() => told.length, { timeout: 10_000 }).toBeGreaterThan(1);
    until.small = true;
    expect(await small).toBe("small");
    await expect.poll(() => told.slice(told.indexOf(undefined)), { timeout: 10_000 }).toContain("STORE_FULL");
    until.large = true;
    expect(await large).toBe("large");
    expect(told.at(-1)).toBeUndefined();
  },
);
