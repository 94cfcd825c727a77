-- Prelude of all residency scripts: the keys by name, and a slot's encoding `state|fence|lock`.
-- A slot is a place in Triton. `loading` and `unloading` ones belong to the holder of `lock` with that fence.
local SLOTS, USED, LEASES, PINS, GENERATION = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local EPOCH, STATS, USAGE, LOADED_AT, WORKERS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function slot(model)
  local text = redis.call('HGET', SLOTS, model)
  if not text then return nil end
  local state, fence, lock = string.match(text, '^(%a+)|(%d+)|(.*)$')
  return {state = state, fence = fence, lock = lock}
end

local function put(model, state, fence, lock)
  redis.call('HSET', SLOTS, model, state .. '|' .. fence .. '|' .. lock)
end

local function drop(model)
  redis.call('HDEL', SLOTS, model)
  redis.call('ZREM', USED, model)
  redis.call('HDEL', LOADED_AT, model)
end

local function changed(channel)
  redis.call('INCR', GENERATION)
  redis.call('PUBLISH', channel, 'slots ')
end

-- Whether the operation that a slot belongs to still holds its lock.
local function is_held(entry, lock_prefix)
  local value = redis.call('GET', lock_prefix .. entry.lock)
  return value and string.match(value, ':(%d+)$') == entry.fence
end

-- Models that some worker uses right now.
local function leased()
  redis.call('ZREMRANGEBYSCORE', LEASES, '-inf', now())
  local models = {}
  for _, member in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    models[string.match(member, '^(.*)|')] = true
  end
  return models
end
