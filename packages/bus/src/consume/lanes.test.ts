import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { expect, it } from "vitest";
import { createLanes } from "./lanes.ts";

/** Tasks that end when they are told to, and the order in which they began. */
function controlled(options: Parameters<typeof createLanes>[0]) {
  const lanes = createLanes(options);
  const began: string[] = [];
  const ends = new Map<string, () => void>();
  let count = 0;
  return {
    lanes,
    began,
    add(owner: string, lane = String(count), bytes = 0) {
      const name = `${owner}${count++}`;
      void lanes.run({ lane, owner, bytes }, async () => {
        began.push(name);
        await new Promise<void>((resolve) => ends.set(name, resolve));
      });
    },
    async end(name: string) {
      ends.get(name)?.();
      ends.delete(name);
      await turn();
    },
    runs: () => [...ends.keys()],
  };
}

it("gives places in turns by owner, whoever has how many tasks", async () => {
  const { add, began, end } = controlled({ places: 1 });
  for (let n = 0; n < 5; n++) add("a");
  add("b");
  add("b");
  add("c");
  await turn();
  for (let n = 0; n < 8; n++) await end(began.at(-1) ?? "");
  expect(began.map((name) => name[0]).join("")).toBe("aabcabaa");
});

it("has a spare place only for an owner of whom nothing runs", async () => {
  const { add, began } = controlled({ places: 2, spare: 1 });
  for (let n = 0; n < 4; n++) add("a");
  await turn();
  expect(began).toEqual(["a0", "a1"]);
  add("b");
  add("b");
  await turn();
  expect(began).toEqual(["a0", "a1", "b4"]);
});

it("gives the place of a task that waits for others to the next one, and has it wait for a place again", async () => {
  const { lanes, add, began, end } = controlled({ places: 1 });
  const answered = Promise.withResolvers<string>();
  const wentOn: string[] = [];
  const task = lanes.run({ lane: "slow", owner: "slow" }, async ({ withoutPlace }) => {
    wentOn.push(await withoutPlace(() => answered.promise));
    await withoutPlace(() => Promise.reject(new Error("no answer"))).catch((error: Error) => wentOn.push(error.message));
  });
  await turn();
  add("a");
  await turn();
  expect(began).toEqual(["a0"]);
  answered.resolve("answer");
  await turn();
  expect(wentOn).toEqual([]);
  await end("a0");
  await task;
  expect(wentOn).toEqual(["answer", "no answer"]);
  add("b");
  await turn();
  expect(began).toEqual(["a0", "b1"]);
});

/** Work in steps, each of which takes a millisecond of a clock that only work moves. */
function working(places: number) {
  let time = 0;
  const lanes = createLanes({ places, now: () => time });
  const steps: string[] = [];
  let count = 0;
  return {
    steps,
    work: (owner: string, number: number, busy: boolean) =>
      lanes.run({ lane: String(count++), owner }, async ({ breathe }) => {
        for (let n = 0; n < number; n++) {
          steps.push(owner);
          // A short task waits for answers of servers; a long one keeps the thread busy.
          if (busy) {
            time += 1;
            await breathe();
          } else await turn();
        }
        steps.push(`${owner} is done`);
      }),
    pass: (ms: number) => (time += ms),
  };
}

it("has long tasks step aside for what others have just begun", async () => {
  const { steps, work } = working(4);
  const long = [work("loud", 40, true), work("loud", 40, true), work("loud", 40, true)];
  while (steps.length < 60) await turn();
  const from = steps.length;
  await work("quiet", 10, false);
  // Those that were under way each do the step that they had begun.
  expect(steps.slice(from).filter((step) => step === "loud").length).toBeLessThanOrEqual(3);
  await Promise.all(long);
  expect(steps.filter((step) => step === "loud")).toHaveLength(120);
});

it("has nobody step aside for a task that is long itself, nor two for each other", async () => {
  const { steps, work, pass } = working(4);
  const one = work("a", 100, true);
  const other = work("b", 400, true);
  pass(300);
  await Promise.all([one, other]);
  expect(steps.lastIndexOf("a is done")).toBeLessThan(steps.lastIndexOf("b is done"));
  expect(steps).toHaveLength(502);
});

it("has room while a place is free or fewer wait than may", async () => {
  const { add, lanes, began, end } = controlled({ places: 1, ahead: 2 });
  let rooms = 0;
  const look = () => void lanes.room().then(() => rooms++);
  for (let n = 0; n < 3; n++) {
    look();
    await turn();
    add("a");
  }
  look();
  await turn();
  expect(rooms).toBe(3);
  await end(began[0] ?? "");
  expect(rooms).toBe(4);
});

it("has no room while those that wait hold more bytes than may be", async () => {
  const { add, lanes, began, end } = controlled({ places: 1, ahead: 9, aheadBytes: 100 });
  for (const bytes of [1000, 60, 60]) add("a", undefined, bytes);
  await turn();
  let rooms = 0;
  void lanes.room().then(() => rooms++);
  await turn();
  expect(rooms).toBe(0);
  await end(began[0] ?? "");
  expect(rooms).toBe(1);
});

it("never runs more than it may, none of a lane twice at once, and in the end all", async () => {
  const step = fc.oneof(
    fc.record({ add: fc.constantFrom("a", "b", "c"), lane: fc.option(fc.constantFrom("x", "y"), { nil: undefined }) }),
    fc.record({ end: fc.nat() }),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 40 }),
      fc.integer({ min: 1, max: 3 }),
      fc.integer({ min: 0, max: 2 }),
      async (script, places, spare) => {
        const { add, began, end, runs } = controlled({ places, spare });
        let added = 0;
        for (const one of script) {
          if ("add" in one) {
            add(one.add, one.lane === undefined ? undefined : `${one.add}${one.lane}`);
            added += 1;
          } else await end(runs()[one.end % (runs().length || 1)] ?? "");
          await turn();
          expect(runs().length).toBeLessThanOrEqual(places + spare);
        }
        for (let left = added; left > 0 && runs().length > 0; left--) {
          await end(runs()[0] ?? "");
          await turn();
        }
        expect(began).toHaveLength(added);
      },
    ),
  );
});
