/** Every kind of engine. Another one is a folder beside vllm/, an entry here, and its name in `engineKinds` of the contracts. */
import type { EngineKindName } from "@loraline/contracts";
import type { EngineKind } from "./engine-kind.ts";
import { vllm } from "./vllm/vllm.ts";

export const engines: Readonly<Record<EngineKindName, EngineKind>> = { vllm };
