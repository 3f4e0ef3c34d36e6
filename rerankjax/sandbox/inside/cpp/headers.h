// What MultiPL-E's programs begin with, compiled once.
#include <assert.h>
#include <bits/stdc++.h>
#include "tell.h"
