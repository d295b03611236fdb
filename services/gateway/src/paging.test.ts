import { describe, expect, it } from "vitest";
import { idsOfKey } from "./idempotency.ts";
import { pageOf, pageQueryOf } from "./paging.ts";
import { ulid } from "@loraline/contracts";

const items = ["a", "b", "c", "d", "e"];
const page = (query: object, shown?: (item: string) => boolean) =>
  pageOf(items, pageQueryOf(query, { limit: 2, max: 3 }), { idOf: (item) => item, view: (id) => ({ id }), ...(shown && { shown }) });
const ids = ({ data }: { data: { id: string }[] }) => data.map(({ id }) => id);

describe("pages", () => {
  it("follow one another until nothing is left", () => {
    expect(page({})).toEqual({ object: "list", data: [{ id: "a" }, { id: "b" }], has_more: true, first_id: "a", last_id: "b" });
    expect(page({ after: "b" })).toMatchObject({ has_more: true, last_id: "d" });
    expect(page({ after: "d" })).toMatchObject({ has_more: false, data: [{ id: "e" }] });
    expect(page({ after: "e" })).toEqual({ object: "list", data: [], has_more: false, first_id: null, last_id: null });
  });

  it("take a hidden item as cursor", () => {
    const shown = (item: string) => item !== "b" && item !== "c";
    expect(ids(page({ after: "b" }, shown))).toEqual(["d", "e"]);
    expect(page({ limit: "3" }, shown)).toMatchObject({ has_more: false, data: [{ id: "a" }, { id: "d" }, { id: "e" }] });
  });

  it.each(["0", "4", "-1", "1.5", "x"])("refuse limit=%s", (limit) => {
    expect(() => page({ limit })).toThrow(expect.objectContaining({ status: 400, param: "limit" }));
  });

  it("refuse a cursor that is nowhere", () => {
    expect(() => page({ after: "z" })).toThrow(expect.objectContaining({ status: 400, param: "after" }));
  });
});

describe("ids of an idempotency key", () => {
  const hour = 3_600_000;
  it("are ULIDs, found again within half a day, and different for other keys and tenants", () => {
    const [now, before] = idsOfKey({ tenant: "acme", key: "k", nowMs: 100 * hour });
    expect([ulid.safeParse(now).success, ulid.safeParse(before).success]).toEqual([true, true]);
    for (const later of [1, 6, 12]) expect(idsOfKey({ tenant: "acme", key: "k", nowMs: (100 + later) * hour })).toContain(now);
    expect(idsOfKey({ tenant: "acme", key: "other", nowMs: 100 * hour })).not.toContain(now);
    expect(idsOfKey({ tenant: "other", key: "k", nowMs: 100 * hour })).not.toContain(now);
  });
});
