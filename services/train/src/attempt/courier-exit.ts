/** Exit codes of the courier; any other code is a crash. */
export const courierExit = {
  /** `run.trained` is stored. */
  trained: 0,
  /** `run.failed` is stored: trying again is useless. */
  failed: 10,
  /** Try again; `outcome.json` in the attempt's folder says why. EX_TEMPFAIL of sysexits. */
  retry: 75,
} as const;
