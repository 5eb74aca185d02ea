// The Roles that tests, demo, simulation and end-to-end checks give to operators.
import { readFileSync } from "node:fs"
import { join } from "node:path"

type PolicyRule = { apiGroups: string[]; resources: string[]; verbs: string[]; resourceNames?: string[] }
const rbac = readFileSync(join(import.meta.dir, "../../deploy/rbac.yaml"), "utf8")
const role = (Bun.YAML.parse(rbac) as { kind: string; rules: PolicyRule[] }[]).find(({ kind }) => kind === "Role")

/** What deploy/rbac.yaml grants, and nothing else. */
export const OPERATOR_ROLE: PolicyRule[] = role!.rules
/** What the Python operator had. */
export const OLD_ROLE: PolicyRule[] = [
  { apiGroups: ["batch"], resources: ["jobs"], verbs: ["get", "list", "create", "delete"] },
  { apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "delete"] },
  { apiGroups: [""], resources: ["pods/log"], verbs: ["get"] },
]
