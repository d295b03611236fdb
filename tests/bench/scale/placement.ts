/** A decision where ten thousand versions go on four hundred replicas: all of them for the first time, and one more. */
import { decidePlacement, type PlacedVersion } from "../../../services/serve/src/controller/placement/decide-placement.ts";
import type { ScaleRow } from "../scale.ts";
import { cpuMs } from "../table.ts";

export async function scalePlacement(): Promise<ScaleRow[]> {
  const replicas = Array.from({ length: 400 }, (_, n) => `r${n}`);
  const version = (n: number): PlacedVersion => ({
    loraName: `t${n % 500}.a${n}.v1.0123456789ab`,
    placement: { mode: "all" },
    rank: (n % 4) as PlacedVersion["rank"],
    current: null,
  });
  const versions = Array.from({ length: 10_000 }, (_, n) => version(n));
  const decide = (of: readonly PlacedVersion[]) => decidePlacement({ engine: "e", replicas, capacity: 100, versions: of });
  const timed = <T>(work: () => T): [T, number] => {
    const from = cpuMs();
    return [work(), cpuMs() - from];
  };
  decide(versions.slice(0, 2000));
  const [placed, first] = timed(() => decide(versions));
  const standing = versions.map((each) => ({ ...each, current: placed.get(each.loraName)?.replicas ?? null }));
  const [, more] = timed(() => decide([...standing, { ...version(10_000), current: [] }]));
  return [
    {
      what: "deciding where 10,000 versions go on 400 replicas, in one go",
      value: `${first.toFixed(0)} ms of CPU for all, ${more.toFixed(0)} ms for one more`,
      before: "1,580 and 121 ms",
      limit: "cheaper; 3.5 s before, with the handover (review)",
      detail: "max_cpu_loras 100: each gets four copies",
    },
  ];
}
