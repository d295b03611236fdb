import type { GuardedFetch } from "@loraline/runtime";
import { expect, it } from "vitest";
import { createPictureFetch } from "./fetch-picture.ts";

it("pictures that come slowly, however many, keep a dataset no longer than an hour at its place", async () => {
  let time = 0;
  let asked = 0;
  const get = async () => {
    asked++;
    time += 59_000;
    return { body: (async function* () {})() };
  };
  const fetch = await createPictureFetch(
    {
      bus: { stored: async () => new Map() },
      fetch: { get } as unknown as GuardedFetch,
      quotas: { of: () => ({ storageBytes: null }) as never },
      settings: { maxBytes: 1000 },
      signal: new AbortController().signal,
      now: () => time,
    },
    "acme",
  );
  const take = (n: number) => fetch(`https://host-${n}.example/picture.png`, 1000);
  for (let n = 0; n < 62; n++) await take(n);
  await expect(take(62)).rejects.toMatchObject({ code: "FETCH_TOO_SLOW", message: expect.stringContaining("60 minutes") });
  expect(asked).toBe(62);
});
