-- Keeps a decision under the id of another one, unless that one is the later.
-- KEYS: the decision. ARGV: its record as JSON, when it was decided in s, its retention in s.
-- Returns 1, or 0 where the other one stays.
local known = redis.call('GET', KEYS[1])
if known then
  local is_record, record = pcall(cjson.decode, known)
  -- The fourth field is when it was decided; what can't be read gives way.
  if is_record and type(record) == 'table' and tonumber(record[4]) and tonumber(record[4]) > tonumber(ARGV[2]) then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
