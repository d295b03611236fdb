import type { ApiClient } from "@loraline/client";
import type { RunState } from "@loraline/contracts";
import { expect, it } from "vitest";
import { findRun } from "./find-run.ts";

const ids = ["01JD0000000000000000000AAA", "01JD0000000000000000000BBB", "01JD0000000000000000000CAA"];
/** A server whose pages have one run. */
const api = {
  async listRuns({ query: { after } = {} }: { query?: { after?: string } } = {}) {
    const at = after === undefined ? 0 : ids.indexOf(after) + 1;
    return { data: ids.slice(at, at + 1).map((runId) => ({ runId }) as RunState), has_more: at + 1 < ids.length };
  },
} as unknown as ApiClient;

it("finds a run by a part of its id on any page, the newest by `last`, and says when there are several or none", async () => {
  expect(await findRun(api, "last")).toMatchObject({ runId: ids[0] });
  expect(await findRun(api, "bbb")).toMatchObject({ runId: ids[1] });
  await expect(findRun(api, "aa")).rejects.toMatchObject({ message: expect.stringContaining("fits several runs") as string });
  await expect(findRun(api, "01JD")).rejects.toMatchObject({ message: expect.stringContaining("fits several runs") as string });
  await expect(findRun(api, "xyz")).rejects.toMatchObject({ message: expect.stringContaining("there is no run") as string });
});
